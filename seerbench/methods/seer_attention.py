"""SeerAttention: a learned gate scores the blocks, a rule selects from the scores, our kernel attends.

What it is  one gate per layer (gate.py) scores every pair of query block and key block from pooled q and k; the
            top-k rule or a threshold selects key blocks per query block. Ours are two further ways to select: one
            threshold for all rows and heads of a layer, and sink and diagonal kept for certain
Paper       SeerAttention (arXiv:2410.13276), v1 and v2
Upstream    microsoft/SeerAttention; its first code is followed where the paper leaves a choice open
Fidelity    our own implementation of the paper's gate, selection rules and kernel
Timed       plan (score: pooling, linear layers and scores; select: the lists) and attend
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.errors import Refused
from seerbench.methods.block_selection import (
    select_in_layer,
    select_threshold,
    select_top_k,
    selection_suffix,
    with_sink_and_diagonal,
)
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

    takes_last_rows = True

    def __init__(
        self,
        gates: Sequence[AttnGate],
        sparsity: float | None = 0.9,
        threshold: float | None = None,
        spread: str = "row",
        forced: bool = False,
    ) -> None:
        """Make the method from trained gates.

        Args:
            gates: one gate per layer, all with the same configuration.
            sparsity: requested share of causal blocks to skip, by the top-k rule (v1).
            threshold: smallest softmax of a block's score that is kept (v2), in place of a sparsity.
            spread: "row" for the top-k rule; "layer" for one threshold on the softmax of the scores, which is the
                one that meets the sparsity in this layer.
            forced: whether block 0 and the diagonal are kept for certain, inside the same number of blocks.

        Raises:
            ValueError: unless exactly one of sparsity and threshold is given; for a threshold with a spread or
                forced blocks; and for either of these with blocks that are not square.
        """
        if (sparsity is None) == (threshold is None):
            raise ValueError("SeerAttention takes a sparsity (top-k) or a threshold, and not both")
        self.gates, self.sparsity, self.threshold = gates, sparsity, threshold
        self.spread, self.forced, self.model_layers = spread, forced, len(gates)
        self.block, self.block_q = gates[0].config.block, gates[0].config.query_block
        self.name += selection_suffix(threshold, spread, forced, square=self.block == self.block_q)

    def refuses(self, problem: AttentionProblem) -> str | None:
        if (problem.block_q, problem.block_k) != (self.block_q, self.block):
            wanted = f"{problem.block_q} x {problem.block_k}"
            return f"its gate chooses blocks of {self.block_q} x {self.block}, not {wanted}"
        return super().refuses(problem)

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        return self.select(self.score(q, k, layer), q.shape[2])

    def score(self, q: Tensor, k: Tensor, layer: LayerContext) -> Tensor:
        """Return the gate's scores, fp32 [B, Hq, nq, nk]; above the diagonal, which `select` skips, undefined.

        Raises:
            Refused: the gates are of another model.
        """
        gate = self.gates[layer.index % len(self.gates)]
        kv_heads = k.shape[1] if gate.wq is None else gate.wk.shape[0]
        given, wanted = (gate.q_heads, kv_heads, gate.head_dim), (q.shape[1], k.shape[1], q.shape[3])
        if layer.index >= len(self.gates) or given != wanted:
            raise Refused(
                f"the gates are for {len(self.gates)} layers of {given} (query heads, key/value heads, head_dim), "
                f"and layer {layer.index} has {wanted}; they are of another model"
            )
        return gate_scores(gate, q, k, layer, upper_triangle=self.spread == "layer" or bool(self.forced))

    def select(self, scores: Tensor, tokens: int) -> BlockMask:
        """Return the blocks that the rule or the threshold keeps of the result of `score`."""
        if self.threshold is not None:
            return select_threshold(scores, self.threshold, tokens, self.block, self.last_rows_dense)
        assert self.sparsity is not None  # __init__ takes one of the two
        if self.spread == "layer":
            weights = scores.softmax(-1)
            return select_in_layer(
                weights, self.sparsity, tokens, self.block, self.last_rows_dense, bool(self.forced)
            )
        if self.forced:
            scores = with_sink_and_diagonal(scores)
        return select_top_k(scores, self.sparsity, tokens, self.block, self.last_rows_dense, self.block_q)
