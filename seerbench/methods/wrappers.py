"""What any block-sparse method can be run with: another kernel for its mask, or a mean for what it skips.

variant     wraps a method as an arm of a preset asks
OnKernel    the same plan through another block-sparse kernel (latency.SPARSE_KERNELS), such as FlashAttention-4's
MeanCorrected  each skipped block enters the softmax as its mean key and value (flashprefill.mean_corrected)
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.methods.protocol import Method


def variant(method: Method, kernel: str | None = None, mean_correction: bool = False) -> Method:
    """Return the method on another block-sparse kernel, or with the mean correction, or itself.

    Raises ValueError where both are asked for.
    """
    if kernel and mean_correction:
        raise ValueError(f"{method.name}: an arm has another kernel or the mean correction, not both")
    if kernel:
        return OnKernel(method, kernel)
    return MeanCorrected(method) if mean_correction else method


class _Wrapped:
    """A method whose plan is another's BlockMask."""

    def __init__(self, method: Method) -> None:
        self.method, self.sparsity = method, method.sparsity
        for name in ("block", "source"):
            if hasattr(method, name):
                setattr(self, name, getattr(method, name))

        if hasattr(method, "settled"):
            self.settled = self._settled

    def _settled(self, q: Tensor, k: Tensor, layer: LayerContext) -> Method:
        """The wrapped method's `settled`, wrapped."""
        fixed = copy.copy(self)
        fixed.method = self.method.settled(q, k, layer)
        return fixed

    def mask(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        """The wrapped method's plan; ValueError when it is no BlockMask."""
        plan = self.method.plan(q, k, layer)
        if not isinstance(plan, BlockMask):
            raise ValueError(f"{self.method.name} plans no BlockMask, so that only its own kernel runs it")
        return plan


@dataclass(frozen=True)
class LaidOut:
    """A mask and its lists in another kernel's layout."""

    mask: BlockMask
    lists: Any

    def density(self) -> float:
        """The mask's."""
        return self.mask.density()

    def flops(self, head_dim: int) -> int:
        """The mask's."""
        return self.mask.flops(head_dim)

    def to_token_mask(self) -> Tensor:
        """The mask's."""
        return self.mask.to_token_mask()


class OnKernel(_Wrapped):
    """A method through another kernel; making the kernel's lists is part of its plan."""

    def __init__(self, method: Method, kernel: str) -> None:
        from seerbench.methods.block_sparse_kernels import sparse_kernel

        super().__init__(method)
        self.name, self.kernel = f"{method.name}+{kernel.removesuffix('-sparse')}", sparse_kernel(kernel)

    def implementation(self, case: AttentionProblem) -> str:
        return self.kernel.implementation(case)

    def refuses(self, case: AttentionProblem) -> str | None:
        return self.method.refuses(case) or self.kernel.refuses(case)

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> LaidOut:
        mask = self.mask(q, k, layer)
        return LaidOut(mask, self.kernel.layout(mask))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: LaidOut) -> Tensor:
        return self.kernel.attend(q, k, v, plan.lists)


class MeanCorrected(_Wrapped):
    """A method whose skipped blocks count by their means. Accuracy only: its correction is dense in pooled keys."""

    def __init__(self, method: Method) -> None:
        super().__init__(method)
        self.name = f"{method.name}+mean"

    def implementation(self, case: AttentionProblem) -> str:
        return f"{self.method.implementation(case)}+torch-mean"

    def refuses(self, case: AttentionProblem) -> str | None:
        return self.method.refuses(case)

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        return self.mask(q, k, layer)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockMask) -> Tensor:
        from seerbench.methods.mean_correction import mean_corrected

        return mean_corrected(q, k, v, plan)

    def exact(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockMask, dtype: torch.dtype) -> Tensor:
        """What `attend` should give, in `dtype`: no attention over the plan's blocks alone."""
        from seerbench.methods.mean_correction import mean_corrected_exactly

        return mean_corrected_exactly(q, k, v, plan, dtype)
