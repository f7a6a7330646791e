"""SeerAttention as a method: a learned gate plans, the block-sparse kernel attends."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.methods.block_selection import select_threshold, select_top_k
from seerbench.methods.gate import AttnGate, gate_scores
from seerbench.methods.protocol import BlockSparse
from seerbench.methods.registry import register


@register(
    "seer",
    cites="arXiv:2410.13276",
    fidelity="our own implementation of the paper's gate, top-k rule and kernel; v2's gate and threshold too",
)
class SeerAttention(BlockSparse):
    """Block-sparse prefill whose mask a learned gate predicts.

    plan:   gate scores -> top-k (v1) or thresholded (v2) key blocks per row    O(n^2) in blocks
    attend: block-sparse FlashAttention over the chosen blocks
    """

    def __init__(
        self,
        gates: Sequence[AttnGate],
        sparsity: float | None = 0.9,
        threshold: float | None = None,
        last_rows_dense: int = 0,
    ) -> None:
        """gates: one a layer. sparsity: top-k; threshold: instead of it. last_rows_dense: block rows (v2: 2)."""
        if (sparsity is None) == (threshold is None):
            raise ValueError("SeerAttention takes a sparsity (top-k) or a threshold, one of the two")
        self.gates, self.sparsity, self.threshold = gates, sparsity, threshold
        self.last_rows_dense = last_rows_dense

    @property
    def block(self) -> int:
        """The gates' block size (of keys)."""
        return self.gates[0].config.block

    @property
    def block_q(self) -> int:
        """Query rows a block."""
        return self.gates[0].config.query_block

    def refuses(self, case: AttentionProblem) -> str | None:
        if (case.block_q, case.block_k) != (self.block_q, self.block):
            return f"its gate chooses blocks of {self.block_q} x {self.block}, not {case.block_q} x {case.block_k}"
        return super().refuses(case)

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        return self.select(self.score(q, k, layer), q.shape[2])

    def score(self, q: Tensor, k: Tensor, layer: LayerContext) -> Tensor:
        """The gate: fp32 [B, Hq, nq, nk], for `select` alone: above the diagonal they may be anything."""
        return gate_scores(self.gates[layer.index], q, k, layer, whole=False)

    def select(self, scores: Tensor, tokens: int) -> BlockMask:
        """Scores -> block mask: top-k or threshold."""
        if self.threshold is not None:
            return select_threshold(scores, self.threshold, tokens, self.block, self.last_rows_dense)
        return select_top_k(scores, self.sparsity, tokens, self.block, self.last_rows_dense, self.block_q)
