"""Find the kernel or method that `seerbench compare` is given, and the baselines that it names.

A kernel is a function (q, k, v, mask: BlockMask) -> output. In a file with `kind = "decode"` it is one for
decoding, (q, k, v, lists: CacheLists) -> output. After `:name`, any callable of four arguments is accepted. A
method is a class under `@register`. Both come from a file (`mine.py`, `mine.py:name`) or a module
(`package.module:name`).
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from seerbench.compare.user_code import imported
from seerbench.errors import CompareError
from seerbench.measure.sweeps.decode_kernel import DECODE_KERNELS
from seerbench.methods.block_sparse_kernels import DENSE, SPARSE_KERNELS, sparse_kernel
from seerbench.methods.mask_kernels import FunctionKernel
from seerbench.methods.registry import card_of, create, registered
from seerbench.rows.source_digest import files_digest

PREFILL, DECODE = "prefill", "decode"  # what a kernel is for: the name `kind` in its file, or else the first
ARGUMENTS = {PREFILL: ["q", "k", "v", "mask"], DECODE: ["q", "k", "v", "lists"]}
# Method -> what it needs besides a sparsity. Such methods cannot be compared.
NEEDS_A_MODEL = {"seer": "trained gates", "moa": "a plan searched for a model"}


@dataclass
class KernelFunction(FunctionKernel):
    """A function from a user's file or from another commit.

    Attributes:
        digest: the hash of its file, for the column source_digest; None for this tree's.
        keeps: anything that must live as long as the function, such as a temporary folder with its source.
        kind: a key of ARGUMENTS. The fourth argument of a kernel for decoding is CacheLists.
    """

    digest: str | None = None
    keeps: object = None
    kind: str = PREFILL


def load(target: str, name: str | None = None) -> KernelFunction | type[Any]:
    """Return the kernel or the method class that a target names.

    Raises CompareError if the target holds none, or if it holds several and `:name` is missing.

    Args:
        target: a Python file or an importable module, with `:name` if it holds several kernels and methods.
        name: the kernel's name in the rows; by default the function's, or the file's if it holds only one.
    """
    place, _, wanted = target.partition(":")
    path = Path(place)
    make_importable(Path.cwd())
    if path.suffix == ".py":
        if not path.is_file():
            raise CompareError(f"no file {place}; give a Python file or package.module:object")
        module = import_file(path)
    else:
        module = import_named(place)
    kind = getattr(module, "kind", PREFILL)
    if kind not in ARGUMENTS:
        raise CompareError(f"{place}: kind is {' or '.join(ARGUMENTS)}, not {kind!r}")
    known = {
        key: value for key, value in vars(module).items() if looks_like_kernel(value, kind) or is_method(value)
    }
    own = [key for key, value in known.items() if value.__module__ == module.__name__ and key[0] != "_"]
    if wanted and takes_four(getattr(module, wanted, None)):
        known[wanted] = getattr(module, wanted)  # the user named it, so the names of its arguments are not checked
    if wanted and wanted not in known:
        raise CompareError(f"{place} has no kernel or method {wanted!r}; it has {', '.join(own) or 'none'}")
    if not wanted and len(own) != 1:
        raise CompareError(
            f"{place} has {len(own)} kernels and methods ({', '.join(own) or 'none'}); write {place}:name. "
            f"A kernel is a function ({', '.join(ARGUMENTS[kind])}), a method a class under @register"
            + (f"; a kernel for decoding ({', '.join(ARGUMENTS[DECODE])}) needs kind = {DECODE!r} in its file")
            * (kind == PREFILL)
        )
    value = known[wanted or own[0]]
    if is_method(value):
        return value
    refusal = getattr(module, "refuses", lambda problem: None)
    if not callable(refusal):
        raise CompareError(f"{place}: refuses is a function that takes a problem and returns a reason or None")
    digest = files_digest([Path(str(module.__file__))])
    return KernelFunction(name or wanted or path.stem, value, refusal, digest, kind=kind)


def import_file(path: Path) -> ModuleType:
    """Import a Python file as a module; files beside it can be imported by it."""
    make_importable(path.parent)
    spec = importlib.util.spec_from_file_location(f"compared_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise CompareError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with imported(str(path)):
        spec.loader.exec_module(module)
    return module


def import_named(place: str) -> ModuleType:
    """Import a module by its dotted name. Raises CompareError where that is not possible."""
    with imported(place):
        spec = importlib.util.find_spec(place)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise CompareError(f"no Python file is named {place!r}; give a file.py or package.module:object")
    with imported(spec.origin):
        return importlib.import_module(place)


def make_importable(folder: Path) -> None:
    """Put a folder on Python's path, as Python does for the folder of a script."""
    if str(folder.resolve()) not in sys.path:
        sys.path.insert(0, str(folder.resolve()))


def takes_four(value: Any) -> bool:
    """Return whether four positional arguments make a valid call and value is no class; a partial is accepted."""
    if inspect.isclass(value) or not callable(value):
        return False
    try:
        inspect.signature(value).bind(*ARGUMENTS[PREFILL])
    except (TypeError, ValueError):  # ValueError: a builtin function whose signature Python does not know
        return False
    return True


def looks_like_kernel(value: Any, kind: str) -> bool:
    """Return whether a function's first four arguments have the names of a kind, and it needs no others."""
    named = inspect.isfunction(value) and list(inspect.signature(value).parameters)[:4] == ARGUMENTS[kind]
    return named and takes_four(value)


def is_method(value: Any) -> bool:
    """Return whether a value is a registered method class."""
    return inspect.isclass(value) and value in registered


def kernel_named(name: str) -> Any:
    """Return a baseline of a kernel: one of DENSE or SPARSE_KERNELS, or what `load` finds. Raises CompareError."""
    if name in DENSE:
        return create(name)
    if name in SPARSE_KERNELS:
        return sparse_kernel(name)
    if ".py" not in name and ":" not in name:
        known = ", ".join((*DENSE, *SPARSE_KERNELS))
        raise CompareError(f"no baseline {name!r} for a kernel; there are {known}, or another file.py")
    return kernel_in_file(name, PREFILL)


def decode_kernel_named(name: str) -> Any:
    """Return a baseline of a kernel for decoding, as `kernel_named` does: one of DECODE_KERNELS, or a file's."""
    if name in DECODE_KERNELS:
        return DECODE_KERNELS[name]()
    if ".py" not in name and ":" not in name:
        known = ", ".join(DECODE_KERNELS)
        raise CompareError(f"no baseline {name!r} for a kernel for decoding; there are {known}, or another file.py")
    return kernel_in_file(name, DECODE)


def kernel_in_file(name: str, kind: str) -> KernelFunction:
    """Return the kernel that a file or module has; raise CompareError for a method, or a kernel of another kind."""
    loaded = load(name)
    if isinstance(loaded, type):
        raise CompareError(f"{name} is a method; a kernel is compared with kernels")
    if loaded.kind != kind:
        raise CompareError(
            f"{name} has a kernel for {loaded.kind}, and yours is for {kind}; "
            "name a baseline of the same kind with --against"
        )
    return loaded


def require_method(name: str) -> None:
    """Raise CompareError for a method that needs trained gates or a plan, UnknownMethod for an unknown name."""
    if name in NEEDS_A_MODEL:
        raise CompareError(
            f"{name} needs {NEEDS_A_MODEL[name]}; time it with `seerbench latency PRESET methods CONTEXT`"
        )
    card_of(name)


def build(make: Callable[..., Any], sparsity: float, block: int) -> Any:
    """Return a method; its constructor gets the sparsity and block size if it has such arguments."""
    parameters = inspect.signature(make).parameters
    options = {"sparsity": sparsity, "block": block}
    return make(**{name: value for name, value in options.items() if name in parameters})
