"""load."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from seerbench.compare import trials as compare_trials
from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem
from seerbench.errors import CompareError
from seerbench.methods import block_sparse_kernels
from seerbench.methods.cards import Card
from seerbench.methods.mask_kernels import BlockSparseKernel
from seerbench.methods.registry import card_of, create, registered
from seerbench.rows.source_digest import files_digest

ARGUMENTS = ["q", "k", "v", "mask"]


@dataclass
class KernelFunction(BlockSparseKernel):
    """A bare function as the sweeps take kernels: implementation, refuses, attend."""

    name: str
    function: compare_trials.Kernel
    digest: str | None = None  # of its file, for the rows
    refusal: Callable[[AttentionProblem], str | None] = field(default=lambda case: None)

    def implementation(self, case: AttentionProblem) -> str:
        return self.name

    def refuses(self, case: AttentionProblem) -> str | None:
        return self.refusal(case)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockMask) -> Tensor:
        return self.function(q, k, v, plan)


def load(target: str, name: str | None = None) -> KernelFunction | type:
    """The kernel or method class that `target` names; CompareError when it names none, or several."""
    place, _, wanted = target.partition(":")
    path = Path(place)
    _reach(Path.cwd())
    if path.suffix == ".py":
        if not path.is_file():
            raise CompareError(f"no file {place}; give a Python file or package.module:object")
        module = _import_file(path)
    else:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise CompareError(f"cannot import {place}: {error}; give a file.py or package.module:object") from None
    found = {key: value for key, value in vars(module).items() if _is_kernel(value) or _is_method(value)}
    own = {key: value for key, value in found.items() if value.__module__ == module.__name__ and key[0] != "_"}
    if wanted and takes_four(getattr(module, wanted, None)):
        found[wanted] = getattr(module, wanted)  # named, so that it need not look like a kernel
    if wanted and wanted not in found:
        raise CompareError(f"{place} has no kernel or method {wanted!r}; it has {', '.join(own) or 'none'}")
    if not wanted and len(own) != 1:
        raise CompareError(
            f"{place} has {len(own)} kernels and methods ({', '.join(own) or 'none'}); write {place}:name. "
            f"A kernel is a function ({', '.join(ARGUMENTS)}), a method a class under @register"
        )
    value = found[wanted] if wanted else next(iter(own.values()))
    if _is_method(value):
        return value
    name = name or wanted or path.stem
    digest = files_digest([Path(inspect.getfile(module))])
    return KernelFunction(name, value, digest, getattr(module, "refuses", lambda case: None))


def _import_file(path: Path) -> ModuleType:
    _reach(path.parent)
    spec = importlib.util.spec_from_file_location(f"compared_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _reach(folder: Path) -> None:
    """Make a folder's modules importable, as Python does for a script's own."""
    if str(folder.resolve()) not in sys.path:
        sys.path.insert(0, str(folder.resolve()))


def takes_four(value: Any) -> bool:
    """Whether value(q, k, v, mask) is a call that Python would make: a function, a partial, a compiled one."""
    if inspect.isclass(value) or not callable(value):
        return False
    try:
        inspect.signature(value).bind(*ARGUMENTS)
    except TypeError:
        return False
    return True


def _is_kernel(value: Any) -> bool:
    """A function that is one by its arguments' names, and can be called with these four."""
    named = inspect.isfunction(value) and list(inspect.signature(value).parameters)[:4] == ARGUMENTS
    return named and takes_four(value)


def _is_method(value: Any) -> bool:
    return inspect.isclass(value) and value in registered


def kernel_named(name: str) -> Any:
    """A baseline of a kernel: one of latency.DENSE or SPARSE_KERNELS, or a target that `load` takes."""
    if name in block_sparse_kernels.DENSE:
        return create(name)
    if name in block_sparse_kernels.SPARSE_KERNELS:
        return block_sparse_kernels.sparse_kernel(name)
    if ".py" not in name and ":" not in name:
        known = ", ".join((*block_sparse_kernels.DENSE, *block_sparse_kernels.SPARSE_KERNELS))
        raise CompareError(f"no baseline {name!r} for a kernel; there are {known}, or another file.py")
    loaded = load(name)
    if isinstance(loaded, type):
        raise CompareError(f"{name} is a method; a kernel is compared with kernels")
    return loaded


def _method_named(name: str) -> Card:
    if name in ("seer", "moa"):
        needs = {"seer": "trained gates", "moa": "a plan searched for a model"}[name]
        raise CompareError(f"{name} needs {needs}; time it with `seerbench latency PRESET methods CONTEXT`")
    return card_of(name)


def build(make: Callable[..., Any], sparsity: float, block: int) -> Any:
    """A method at a sparsity and block, as far as its constructor takes them."""
    takes = inspect.signature(make).parameters
    return make(**{key: value for key, value in (("sparsity", sparsity), ("block", block)) if key in takes})
