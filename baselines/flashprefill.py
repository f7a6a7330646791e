"""FlashPrefill: blocks whose score is near enough to their row's best.

What      every query against mean-pooled key blocks; a block's score is the sum of exp over its queries; kept if
          at least alpha times its row's maximum: no sort, no cumulative sum. Two sink blocks, a window of four
          and the last two rows are kept always. Mean correction (from V2, an option of any block mask, see
          seerbench/variants.py): each skipped block enters the softmax as one pooled key and value with logit +
          log(tokens of the block)
Source    arXiv:2603.06199; mean correction arXiv:2608.19758
Upstream  qhfan/FlashPrefill, read at b5c8f5b9
Fidelity  our port of the plan, its scores in Triton, on our block-sparse kernel (upstream: Triton, 128; V2: CUDA).
          A key block is visible to a query that is past the block's last key, as upstream; the diagonal block,
          which no query but the last sees whole, is kept by the window. Mean correction is ours, in torch and
          dense in pooled keys: right, not fast. With a requested sparsity, alpha is the one that keeps as many
          blocks as the top-k rule, and the blocks kept always count in it
Timed     plan (pooling, scores, lists) and attend
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

ALPHA = 0.1  # V2's evaluations; V1's code has 0.7 as its default
SINKS, WINDOW, LAST_ROWS = 2, 4, 2  # blocks; V1's code
SMALLEST = 1e-300  # alpha that still has a logarithm


@register("flashprefill", cites="arXiv:2603.06199", fidelity="our port of the plan, on our kernel")
class FlashPrefill(BlockSparse):
    """Blocks within a factor of their row's best pooled score, sinks and a window."""

    def __init__(self, sparsity: float | None = None, block: int = 128, alpha: float = ALPHA) -> None:
        """sparsity: in place of alpha, when given."""
        self.sparsity, self.block, self.alpha = sparsity, block, alpha

    def with_threshold_for(self, q: Tensor, k: Tensor, layer: LayerContext) -> FlashPrefill:
        """The same at the alpha that a requested sparsity comes to on this input: what a timing runs."""
        limit = float(budget_limit(self._cost(q, k), self.sparsity).max())
        return FlashPrefill(block=self.block, alpha=max(math.exp(-limit), SMALLEST))

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        cost = self._cost(q, k)
        if self.sparsity is not None:
            return select_budget(cost, self.sparsity, q.shape[2], self.block)
        return mask_from_flags(cost <= -math.log(self.alpha), q.shape[2], self.block, self.block)

    def _cost(self, q: Tensor, k: Tensor) -> Tensor:
        """Distance from the row's best score, in log, [B, Hq, n, n]: kept where at most -log(alpha)."""
        scores = pooled_scores(q, k, self.block)
        cost = (scores.amax(-1, keepdim=True) - scores).nan_to_num(nan=torch.inf)
        return cost.masked_fill_(always_kept(scores.shape[-1], q.device), -torch.inf)


def always_kept(n: int, device: torch.device | str = "cpu") -> Tensor:
    """bool [n, n]: sinks, window and the last rows."""
    rows = torch.arange(n, device=device)
    near = (rows[:, None] - rows < WINDOW) & (rows <= rows[:, None])
    return near | (rows < SINKS) | (rows[:, None] >= n - LAST_ROWS)
