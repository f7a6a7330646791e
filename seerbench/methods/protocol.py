"""protocol."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem, LayerContext


class Method(Protocol):
    """A way to compute prefill attention. `plan` chooses what to read, `attend` reads it; both are timed.

    One that meets a requested sparsity by looking for its threshold has `settled(q, k, layer)`: itself at the
    threshold that these inputs give, which timings run in its place.

    A method may also split its plan into `score(q, k, layer)` and `select(scores, tokens)`; the
    breakdown (Figure 5) then times the two apart.
    """

    name: str
    sparsity: float | None  # requested; None where the method has no such knob

    def implementation(self, case: AttentionProblem) -> str:
        """The kernel that `attend` runs for `case`, as it is named in the rows."""

    def refuses(self, case: AttentionProblem) -> str | None:
        """Why this method cannot run `case`, or None. It never falls back to another kernel."""

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> Any:
        """q [B, Hq, N, D], k [B, Hk, N, D], rotated -> BlockMask, or a plan of its own with `density()`.

        None means that nothing is skipped.
        """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: Any) -> Tensor:
        """-> [B, Hq, N, D] in q's dtype."""


class BlockSparse:
    """The half that all methods with a BlockMask for a plan share: `attend` by our kernel."""

    def implementation(self, case: AttentionProblem) -> str:
        from seerbench.kernels.block_sparse import api as kernel

        return kernel.implementation(case)

    def refuses(self, case: AttentionProblem) -> str | None:
        from seerbench.kernels.block_sparse import api as kernel

        return kernel.refuses(case)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockMask) -> Tensor:
        from seerbench.kernels.block_sparse import api as kernel

        return kernel.block_sparse_attention(q, k, v, plan)


def realised_sparsity(plan: Any) -> float:
    """Share of the causal blocks that `plan` really skips."""
    return 0.0 if plan is None else 1.0 - plan.density()
