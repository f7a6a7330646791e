"""Run a method through another block-sparse kernel, or with the means of the blocks that it skips.

variant        makes either of the two, as an arm of a preset asks
OnKernel       the method's plan on another kernel of block_sparse_kernels.py, such as FlashAttention-4's
MeanCorrected  each skipped block enters the softmax as its mean key and value (mean_correction.py)
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.methods.block_sparse_kernels import sparse_kernel
from seerbench.methods.mean_correction import mean_corrected, mean_corrected_exactly
from seerbench.methods.protocol import Method, Plan, PlanT


def variant(method: Method[Any], kernel: str | None = None, mean_correction: bool = False) -> Method[Any]:
    """Return the method on another block-sparse kernel, or with the mean correction, or itself.

    Args:
        method: a method whose plan is a BlockMask.
        kernel: a name in SPARSE_KERNELS.
        mean_correction: whether skipped blocks count by their means.

    Raises:
        ValueError: both are requested.
    """
    if kernel and mean_correction:
        raise ValueError(f"{method.name}: an arm has another kernel or the mean correction, not both")
    if kernel:
        return OnKernel(method, kernel)
    return MeanCorrected(method) if mean_correction else method


class _Wrapped(Method[PlanT]):
    """A method whose plan comes from another method's BlockMask."""

    def __init__(self, method: Method[Any]) -> None:
        self.method, self.sparsity, self.block, self.block_q = method, method.sparsity, method.block, method.block_q
        self.configuration, self.variant = method.configuration, method.variant
        self.model_layers = method.model_layers

    def with_threshold_for(self, q: Tensor, k: Tensor, layer: LayerContext) -> Method[PlanT]:
        wrapper = copy.copy(self)
        wrapper.method = self.method.with_threshold_for(q, k, layer)
        return wrapper

    def mask(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        """Return the wrapped method's plan; raise ValueError if it is not a BlockMask."""
        plan = self.method.plan(q, k, layer)
        if not isinstance(plan, BlockMask):
            raise ValueError(f"{self.method.name} plans no BlockMask, so only its own kernel runs it")
        return plan


@dataclass(frozen=True)
class LaidOut(Plan):
    """A mask together with its lists in another kernel's layout."""

    mask: BlockMask
    lists: Any

    def density(self) -> float:
        return self.mask.density()

    def head_density(self) -> Tensor:
        return self.mask.head_density()

    def flops(self, head_dim: int) -> int:
        return self.mask.flops(head_dim)

    def to_dense(self) -> Tensor:
        return self.mask.to_dense()

    def to_token_mask(self) -> Tensor:
        return self.mask.to_token_mask()


class OnKernel(_Wrapped[LaidOut]):
    """A method on another kernel. Making the kernel's lists is part of its plan."""

    def __init__(self, method: Method[Any], kernel: str) -> None:
        """Wrap `method`, whose plan must be a BlockMask, for a kernel named in SPARSE_KERNELS."""
        super().__init__(method)
        self.name, self.kernel = f"{method.name}+{kernel.removesuffix('-sparse')}", sparse_kernel(kernel)

    def implementation(self, problem: AttentionProblem) -> str:
        return self.kernel.implementation(problem)

    def refuses(self, problem: AttentionProblem) -> str | None:
        return self.method.refuses(problem) or self.kernel.refuses(problem)

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> LaidOut:
        mask = self.mask(q, k, layer)
        return LaidOut(mask, self.kernel.layout(mask))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: LaidOut) -> Tensor:
        return self.kernel.attend(q, k, v, plan.lists)


class MeanCorrected(_Wrapped[BlockMask]):
    """A method whose skipped blocks count by their means. For accuracy only: it multiplies all pooled keys."""

    corrects_skipped = True

    def __init__(self, method: Method[Any]) -> None:
        """Wrap `method`, whose plan must be a BlockMask."""
        super().__init__(method)
        self.name = f"{method.name}+mean"

    def implementation(self, problem: AttentionProblem) -> str:
        return f"{self.method.implementation(problem)}+torch-mean"

    def refuses(self, problem: AttentionProblem) -> str | None:
        return self.method.refuses(problem)

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        return self.mask(q, k, layer)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockMask) -> Tensor:
        return mean_corrected(q, k, v, plan)

    def exact(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockMask, dtype: torch.dtype) -> Tensor:
        return mean_corrected_exactly(q, k, v, plan, dtype)
