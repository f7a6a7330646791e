"""Make Triton's interpreter prepare triton.language once, which it does again at every call of a device function.

It looks through all names of triton.language for those to replace: half of the time of a kernel that calls many
functions.
"""

from gpu.kernel_cases import INTERPRETED

if INTERPRETED:
    import triton.language as tl
    from triton.runtime import interpreter

    def call(function, *args, **kwargs):
        """Run a device function; the launch of its kernel has prepared the names that the kernel sees."""
        return function.rewrite()(*args, **kwargs)

    interpreter._patch_lang(tl.sum.fn)  # the names that the functions of triton.language see
    interpreter.InterpretedFunction.__call__ = call
