"""Random blocks: the control for any choice of blocks, and the mask of the kernel timings.

What it is  every head keeps, in each row, the diagonal block and visible blocks drawn at random, together as many
            as the top-k rule keeps
Source      the authors' kernel benchmark uses random masks (microsoft/SeerAttention, eval/efficiency); there all
            heads have one mask, and the diagonal is not kept
Fidelity    not a published method: control
Timed       plan (drawing the scores and top-k) and attend (our block-sparse kernel)
"""

from __future__ import annotations

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask, block_count, causal_blocks
from seerbench.core.problem import LayerContext
from seerbench.methods.block_selection import select_top_k
from seerbench.methods.protocol import BlockSparse
from seerbench.methods.registry import register


@register("random", cites="none", fidelity="not a published method: control")
class RandomBlocks(BlockSparse):
    """Random blocks with the diagonal kept: what a choice that knows nothing costs."""

    sparsity: float
    takes_last_rows = True

    def __init__(self, sparsity: float = 0.9, block: int = 64, seed: int = 0) -> None:
        """Make the method.

        Args:
            sparsity: requested share of causal blocks to skip, in [0, 1).
            block: tokens per block.
            seed: with the layer's index it decides which blocks are drawn.
        """
        self.sparsity, self.block, self.seed = sparsity, block, seed

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        n = block_count(q.shape[2], self.block)
        generator = torch.Generator(q.device).manual_seed(self.seed * 1_000 + layer.index)
        scores = torch.rand(q.shape[0], q.shape[1], n, n, generator=generator, device=q.device)
        scores.diagonal(dim1=-2, dim2=-1).fill_(2.0)
        scores.masked_fill_(~causal_blocks(n, 1, 1, q.device), -torch.inf)
        return select_top_k(scores, self.sparsity, q.shape[2], self.block, self.last_rows_dense)
