"""Oracles keep the blocks to which a layer really attends most; they find them by computing all of the attention.

What it is  `oracle` ranks blocks by the true attention map, max-pooled over blocks and row-normalised: the target
            of SeerAttention's gate. `oracle-mass` ranks them by the attention mass in a block. The top-k rule
            selects, or one threshold for all rows and heads of a layer (spread: layer)
Source      the target of SeerAttention's gate (arXiv:2410.13276), section 3.2; the mass is ours
Fidelity    not a published method: what a gate without errors would choose. It is no bound on what another choice
            of as many blocks can reach, since neither maximum nor mass is the loss. It costs more than dense
            attention
Timed       plan (dense attention with its pooled map) and attend. `attend` is what a gate without errors would
            leave to compute; nobody would run plan and attend together
"""

from __future__ import annotations

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask, block_count, causal_blocks
from seerbench.core.problem import LayerContext
from seerbench.kernels.pooled.api import pooled_attention
from seerbench.methods.block_selection import (
    select_in_layer,
    select_top_k,
    selection_suffix,
    with_sink_and_diagonal,
)
from seerbench.methods.gate_losses import gate_target
from seerbench.methods.protocol import BlockSparse
from seerbench.methods.registry import register


@register("oracle", cites="arXiv:2410.13276", fidelity="not a published method: the gate's target, known exactly")
class OracleTopK(BlockSparse):
    """The blocks of the largest true attention weights: the gate's target, known exactly."""

    sparsity: float
    takes_last_rows = True

    def __init__(self, sparsity: float = 0.9, block: int = 64, spread: str = "row", forced: bool = False) -> None:
        """Make the method.

        Args:
            sparsity: requested share of causal blocks to skip, in [0, 1).
            block: tokens per block.
            spread: "row" for the top-k rule; "layer" for one threshold for all rows and heads of a layer.
            forced: whether block 0 and the diagonal are kept for certain, inside the same number of blocks.
        """
        self.sparsity, self.block, self.spread, self.forced = sparsity, block, spread, forced
        self.name += selection_suffix(None, spread, forced)

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        weights, tokens = self.weights(q, k), q.shape[2]
        if self.spread == "layer":
            return select_in_layer(
                weights, self.sparsity, tokens, self.block, self.last_rows_dense, bool(self.forced)
            )
        scores = weights.masked_fill(~causal_blocks(weights.shape[-1], 1, 1, q.device), -torch.inf)
        if self.forced:
            scores = with_sink_and_diagonal(scores)
        return select_top_k(scores, self.sparsity, tokens, self.block, self.last_rows_dense)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """Return what blocks are ranked by, fp32 [B, Hq, n, n] whose rows have the sum 1; 0 above the diagonal."""
        # The map does not depend on v, so k takes its place.
        return gate_target(pooled_attention(q, k, k, self.block)[2]).float()


@register("oracle-mass", cites="none", fidelity="not a published method: true attention mass, known exactly")
class OracleMass(OracleTopK):
    """The blocks of the largest true attention mass."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return attention_mass(q, k, self.block)


def attention_mass(q: Tensor, k: Tensor, block: int) -> Tensor:
    """Return the share of each block in the attention weights of its rows, fp32 [B, Hq, n, n].

    One row of blocks is computed at a time, so N x N weights are never held.

    Args:
        q: queries [B, Hq, N, D].
        k: keys [B, Hk, N, D].
        block: tokens per block; n = ceil(N / block).
    """
    (batch, heads, tokens, dim), n = q.shape, block_count(q.shape[2], block)
    keys = k.repeat_interleave(heads // k.shape[1], dim=1)
    place = torch.arange(tokens, device=q.device)
    mass = torch.zeros(batch, heads, n, n, device=q.device)
    for row in range(n):
        rows = slice(row * block, min((row + 1) * block, tokens))
        scores = (q[:, :, rows] @ keys[:, :, : rows.stop].mT).float() * dim**-0.5
        weights = scores.masked_fill_(place[: rows.stop] > place[rows, None], -torch.inf).softmax(-1).mean(-2)
        padded = torch.nn.functional.pad(weights, (0, -rows.stop % block))
        mass[:, :, row, : row + 1] = padded.unflatten(-1, (-1, block)).sum(-1)
    return mass
