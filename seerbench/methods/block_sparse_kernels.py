"""List the dense methods and the block-sparse kernels by the names that presets and rows use. Imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seerbench.core.block_mask import BlockMask
    from seerbench.methods.mask_kernels import BlockSparseKernel

# Methods that read every key.
DENSE = ("dense", "fa2", "cudnn", "fa4", "flash-attn", "flex")
# Kernels that run a given block mask: a class of mask_kernels.py, or a function (q, k, v, mask) of a file in
# kernels/, which may also define `refuses(problem)`.
SPARSE_KERNELS = {
    "block_sparse": "seerbench.methods.mask_kernels:BlockSparseKernel",
    "fa4-sparse": "seerbench.methods.mask_kernels:FlashAttention4Kernel",
    "flex-sparse": "seerbench.methods.mask_kernels:FlexKernel",
}


def sparse_kernel(name: str) -> BlockSparseKernel:
    """Return the kernel that SPARSE_KERNELS lists under `name`; its module, and torch, are imported now.

    Raises KeyError for another name.
    """
    place, _, attribute = SPARSE_KERNELS[name].partition(":")
    module = import_module(place)
    found = getattr(module, attribute)
    if isinstance(found, type):
        kernel: BlockSparseKernel = found()
        return kernel
    from seerbench.methods.mask_kernels import FunctionKernel  # imported here because it imports torch

    refusal = {"refusal": module.refuses} if hasattr(module, "refuses") else {}
    return FunctionKernel(name, found, **refusal)


def laid_out(kernel: Any, mask: BlockMask | None) -> Any:
    """Return the mask as `kernel.attend` takes it; None, which means dense attention, stays None."""
    return None if mask is None else kernel.layout(mask)
