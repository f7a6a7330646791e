"""FlashPrefill keeps the blocks whose score is within a factor of their row's best.

What it is  every query is multiplied with mean-pooled key blocks; a block's score is the sum of exp over its
            queries. A block is kept if its score is at least alpha times its row's maximum, without a sort or a
            cumulative sum. Two sink blocks and a window of four are always kept
Paper       arXiv:2603.06199. Its V2 is a method of its own (flashprefill_v2.py)
Upstream    qhfan/FlashPrefill, read at b5c8f5b9
Settings    alpha 0.18 is upstream's for Llama (its code's default is 0.7). As upstream, the last two rows are dense
            where no sparsity is requested; with a request they are as the arm says
Fidelity    our port of the plan, its scores in Triton, on our block-sparse kernel (upstream: Triton, blocks of
            128). As upstream, a query sees a key block once it is past the block's last key; the window keeps the
            diagonal block, which only its last query sees whole. With a requested sparsity, alpha is the one that
            keeps as many blocks as the top-k rule. The blocks that are always kept count, and a request below them
            is refused
Compared    with upstream's formulas, written out a second time (tests/baselines/test_flashprefill.py); its kernels
            were not run
Timed       plan (pooling, scores, lists) and attend
"""

from __future__ import annotations

import copy
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

ALPHA = 0.18  # upstream's value for Llama
LAST_ROWS = 2  # dense rows at the end in upstream's evaluations
# Blocks that are always kept: the first ones, and the nearest ones of each row.
SINKS, WINDOW = 2, 4
# Smallest alpha that stands for a threshold: exp(-limit) may underflow to 0, which has no logarithm.
MIN_ALPHA = 1e-300


@register("flashprefill", cites="arXiv:2603.06199", fidelity="our port of the plan, on our kernel")
class FlashPrefill(BlockSparse):
    """Blocks within a factor of their row's best pooled score, sinks and a window."""

    takes_last_rows = True

    def __init__(self, sparsity: float | None = None, block: int = 128, alpha: float = ALPHA) -> None:
        """Make the method.

        Args:
            sparsity: requested share of causal blocks to skip, in place of alpha.
            block: tokens per block.
            alpha: least score of a kept block, as a share of its row's best.
        """
        self.sparsity, self.block, self.alpha = sparsity, block, alpha
        if sparsity is None:
            self.configuration, self.last_rows_dense = f"alpha {alpha:g}", LAST_ROWS

    def with_threshold_for(self, q: Tensor, k: Tensor, layer: LayerContext) -> FlashPrefill:
        if self.sparsity is None:
            return self
        found = copy.copy(self)
        found.sparsity = None
        found.alpha = alpha_of(budget_limit(self._cost(q, k), self.sparsity, self.last_rows_dense))
        return found

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        cost, tokens = self._cost(q, k), q.shape[2]
        if self.sparsity is not None:
            return select_budget(cost, self.sparsity, tokens, self.block, self.last_rows_dense)
        return mask_from_flags(cost <= -math.log(self.alpha), tokens, self.block, self.block)

    def _cost(self, q: Tensor, k: Tensor) -> Tensor:
        """Return `cost_of` the scores of each query head, fp32 [B, Hq, n, n]."""
        return cost_of(pooled_scores(q, k, self.block), self.last_rows_dense)


def cost_of(scores: Tensor, last_rows_dense: int) -> Tensor:
    """Return the log of the row's best score over each score, fp32 [B, H, n, n].

    A block is kept if its cost is at most -log(alpha). Blocks that are always kept (`always_kept`) have -inf, and
    blocks without a score inf.

    Args:
        scores: logarithms of the scores, fp32 [B, H, n, n], -inf where no query sees the block.
        last_rows_dense: number of rows at the end that keep every block.
    """
    cost = (scores.amax(-1, keepdim=True) - scores).nan_to_num(nan=torch.inf)
    return cost.masked_fill_(always_kept(scores.shape[-1], last_rows_dense, scores.device), -torch.inf)


def alpha_of(limit: Tensor) -> float:
    """Return the alpha at which blocks of a cost of at most `limit`, fp32 [B], are kept."""
    return max(math.exp(-float(limit.max())), MIN_ALPHA)


def always_kept(n: int, last_rows_dense: int, device: torch.device | str = "cpu") -> Tensor:
    """Return flags of the sinks, the window and the dense rows at the end of n x n blocks, bool [n, n]."""
    rows = torch.arange(n, device=device)
    near = (rows[:, None] - rows < WINDOW) & (rows <= rows[:, None])
    return near | (rows < SINKS) | (rows[:, None] >= n - last_rows_dense)
