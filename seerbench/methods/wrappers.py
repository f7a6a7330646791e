"""Change a method from outside: another block-sparse kernel, dense last rows, means of the blocks that it skips.

variant        makes these changes, as an arm of a preset asks
LastRowsDense  the last block rows read every key
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
from seerbench.core.top_k import require_budget
from seerbench.errors import Refused
from seerbench.methods.block_selection import mask_from_flags
from seerbench.methods.block_sparse_kernels import sparse_kernel
from seerbench.methods.mean_correction import mean_corrected, mean_corrected_exactly
from seerbench.methods.protocol import Method, Plan, PlanT


def variant(
    method: Method[Any], kernel: str | None = None, mean_correction: bool = False, last_rows_dense: int = 0
) -> Method[Any]:
    """Return the method with dense last rows, on another kernel, or with the mean correction, or itself.

    Args:
        method: a method whose plan is a BlockMask.
        kernel: a name in SPARSE_KERNELS.
        mean_correction: whether skipped blocks count by their means.
        last_rows_dense: number of block rows at the end that read every key.

    Raises:
        ValueError: another kernel and the mean correction are both requested.
    """
    if kernel and mean_correction:
        raise ValueError(f"{method.name}: an arm has another kernel or the mean correction, not both")
    if last_rows_dense:
        method = LastRowsDense(method, last_rows_dense)
    if kernel:
        return OnKernel(method, kernel)
    return MeanCorrected(method) if mean_correction else method


class _Wrapped(Method[PlanT]):
    """A method whose plan comes from another method."""

    def __init__(self, method: Method[Any]) -> None:
        self.method, self.sparsity, self.block, self.block_q = method, method.sparsity, method.block, method.block_q
        self.configuration, self.variant = method.configuration, method.variant
        self.model_layers = method.model_layers
        self.last_rows_dense, self.threshold = method.last_rows_dense, method.threshold
        self.spread, self.forced = method.spread, method.forced

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


class LastRowsDense(_Wrapped[Plan]):
    """A method whose last block rows read every key, as in the task evaluations of SeerAttention's authors.

    A method with a requested sparsity pays for these rows from its budget (`Method.takes_last_rows`). If it cannot,
    the rows are added to its plan, and a plan that then misses the request by more than core.top_k.TOLERANCE is
    refused.
    """

    def __init__(self, method: Method[Any], rows: int) -> None:
        """Wrap a method.

        Args:
            method: any method that skips blocks.
            rows: number of block rows, of the method's own blocks.
        """
        inner = copy.copy(method)
        inner.last_rows_dense = rows
        super().__init__(inner)
        self.name = f"{method.name}+last{rows}"
        self.corrects_skipped, self.takes_padding = method.corrects_skipped, method.takes_padding

    def with_threshold_for(self, q: Tensor, k: Tensor, layer: LayerContext) -> Method[Plan]:
        wrapper = copy.copy(self)
        wrapper.method = copy.copy(self.method.with_threshold_for(q, k, layer))
        wrapper.method.last_rows_dense = self.last_rows_dense
        return wrapper

    def implementation(self, problem: AttentionProblem) -> str:
        return self.method.implementation(problem)

    def refuses(self, problem: AttentionProblem) -> str | None:
        return self.method.refuses(problem)

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> Plan:
        plan: Plan = self.method.plan(q, k, layer)
        if self.method.takes_last_rows:
            return plan
        if not isinstance(plan, BlockMask):
            raise Refused(f"{self.method.name} plans no block mask, so its last rows cannot be made dense")
        flags = plan.to_dense()
        flags[..., -self.last_rows_dense :, :] = True
        plan = mask_from_flags(flags, plan.tokens, plan.block_q, plan.block_k)
        if self.method.sparsity is not None:
            why = f"its last {self.last_rows_dense} rows keep every block"
            require_budget(plan.density(), self.method.sparsity, why, flags.shape[-1])
        return plan

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        return self.method.attend(q, k, v, plan)

    def exact(self, q: Tensor, k: Tensor, v: Tensor, plan: Plan, dtype: torch.dtype) -> Tensor | None:
        return self.method.exact(q, k, v, plan, dtype)


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
