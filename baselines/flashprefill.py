"""FlashPrefill keeps the blocks whose score is within a factor of their row's best.

What it is  every query is multiplied with mean-pooled key blocks; a block's score is the sum of exp over its
            queries. A block is kept if its score is at least alpha times its row's maximum, without a sort or a
            cumulative sum. Two sink blocks, a window of four and the last two rows are always kept
Paper       arXiv:2603.06199. The mean correction of V2 (arXiv:2608.19758) works with any block mask and is in
            seerbench/methods/mean_correction.py
Upstream    qhfan/FlashPrefill, read at b5c8f5b9
Fidelity    our port of the plan, its scores in Triton, on our block-sparse kernel (upstream: Triton, blocks of
            128; V2: CUDA). As upstream, a query sees a key block once it is past the block's last key; the window
            keeps the diagonal block, which only its last query sees whole. With a requested sparsity, alpha is the
            one that keeps as many blocks as the top-k rule, and the blocks that are always kept count
Timed       plan (pooling, scores, lists) and attend
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import LayerContext
from seerbench.core.top_k import budget_limit
from seerbench.kernels.pooled_scores.api import pooled_scores
from seerbench.methods.block_selection import mask_from_flags, select_budget
from seerbench.methods.protocol import BlockSparse
from seerbench.methods.registry import register

ALPHA = 0.1  # the value of V2's evaluations; the default of V1's code is 0.7
# Blocks that are always kept: the first ones, the nearest ones, and whole rows at the end. From V1's code.
SINKS, WINDOW, LAST_ROWS = 2, 4, 2
# Smallest alpha that `with_threshold_for` gives: exp(-limit) may underflow to 0, which has no logarithm.
MIN_ALPHA = 1e-300


@register("flashprefill", cites="arXiv:2603.06199", fidelity="our port of the plan, on our kernel")
class FlashPrefill(BlockSparse):
    """Blocks within a factor of their row's best pooled score, sinks and a window."""

    def __init__(self, sparsity: float | None = None, block: int = 128, alpha: float = ALPHA) -> None:
        """Make the method.

        Args:
            sparsity: requested share of causal blocks to skip, in place of alpha.
            block: tokens per block.
            alpha: least score of a kept block, as a share of its row's best.
        """
        self.sparsity, self.block, self.alpha = sparsity, block, alpha

    def with_threshold_for(self, q: Tensor, k: Tensor, layer: LayerContext) -> FlashPrefill:
        if self.sparsity is None:
            return self
        limit = float(budget_limit(self._cost(q, k), self.sparsity).max())
        return FlashPrefill(block=self.block, alpha=max(math.exp(-limit), MIN_ALPHA))

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        cost = self._cost(q, k)
        if self.sparsity is not None:
            return select_budget(cost, self.sparsity, q.shape[2], self.block)
        return mask_from_flags(cost <= -math.log(self.alpha), q.shape[2], self.block, self.block)

    def _cost(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the log of the row's best score over each score, [B, Hq, n, n].

        A block is kept if its cost is at most -log(alpha).
        """
        scores = pooled_scores(q, k, self.block)
        cost = (scores.amax(-1, keepdim=True) - scores).nan_to_num(nan=torch.inf)
        return cost.masked_fill_(always_kept(scores.shape[-1], q.device), -torch.inf)


def always_kept(n: int, device: torch.device | str = "cpu") -> Tensor:
    """Return flags of the sinks, the window and the last rows of n x n blocks, bool [n, n]."""
    rows = torch.arange(n, device=device)
    near = (rows[:, None] - rows < WINDOW) & (rows <= rows[:, None])
    return near | (rows < SINKS) | (rows[:, None] >= n - LAST_ROWS)
