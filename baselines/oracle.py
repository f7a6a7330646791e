"""Oracle top-k keeps the blocks that a gate is trained to find; it finds them by computing all of the attention.

What it is  the top-k rule on the true attention map, max-pooled over blocks and row-normalised
Source      the target of SeerAttention's gate (arXiv:2410.13276), section 3.2
Fidelity    not a published method: upper bound. It costs more than dense attention.
Timed       plan (dense attention with its pooled map) and attend. `attend` is what a gate without errors would
            leave to compute; nobody would run plan and attend together
"""

from __future__ import annotations

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask, causal_blocks
from seerbench.core.problem import LayerContext
from seerbench.kernels.pooled.api import pooled_attention
from seerbench.methods.block_selection import select_top_k
from seerbench.methods.gate_losses import gate_target
from seerbench.methods.protocol import BlockSparse
from seerbench.methods.registry import register


@register("oracle", cites="arXiv:2410.13276", fidelity="not a published method: upper bound")
class OracleTopK(BlockSparse):
    """Top-k on the true pooled attention map: the upper bound for any gate."""

    sparsity: float

    def __init__(self, sparsity: float = 0.9, block: int = 64) -> None:
        """Make the method for a requested sparsity, in [0, 1), and a block size in tokens."""
        self.sparsity, self.block = sparsity, block

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        # The map does not depend on v, so k takes its place.
        target = gate_target(pooled_attention(q, k, k, self.block)[2]).float()
        hidden = ~causal_blocks(target.shape[-1], 1, 1, q.device)
        return select_top_k(target.masked_fill(hidden, -torch.inf), self.sparsity, q.shape[2], self.block)
