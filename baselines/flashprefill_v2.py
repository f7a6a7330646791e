"""FlashPrefill V2 chooses blocks once per key/value head, and lets skipped blocks count by their means.

What it is  the plan of flashprefill.py with one list per key/value head: a block's score is the sum of exp over the
            queries of all heads of the group. Each skipped block enters the softmax as its mean key and value
            (methods/mean_correction.py)
Paper       arXiv:2608.19758
Upstream    qhfan/FlashPrefillv2, read at b0ea5c72. Its README sets alpha to 0.1 (its code also names 0.18 for
            Llama-3.1-8B), two sinks, a window of four, the last 8 tiles dense, and with SGLang the first 4 layers
            dense. Here: alpha 0.1, the arm may give another; dense layers only where the arm asks
Fidelity    our port of the plan and of the mean correction. As upstream, a query sees a key block once it is past
            the block's first token, and the last block, if it is not whole, has no score. Ours, not upstream's:
            a tile. Upstream packs the heads of a group into tiles of 128 rows, so with four query heads per
            key/value head it chooses for 32 positions at a time; ours chooses for a block of positions, as all
            methods here do. The last two block rows are dense where no sparsity is requested: 256 positions at
            blocks of 128, which are upstream's 8 tiles with four query heads. Attention runs on our block-sparse
            kernel and the means in torch (upstream: one CUDA kernel), so its times are no times of V2. With a
            requested sparsity, alpha is the one that keeps as many blocks as the top-k rule, and a request below
            the blocks that are always kept is refused
Compared    with upstream's formulas, written out a second time (tests/baselines/test_flashprefill.py); its kernels
            were not run
Timed       plan (pooling, scores, lists) and attend (with the means)
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from seerbench.baselines.flashprefill import LAST_ROWS, alpha_of, cost_of
from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.core.top_k import budget_limit, require_budget
from seerbench.kernels.block_sparse import api as kernel
from seerbench.kernels.pooled_scores.api import pooled_scores
from seerbench.methods.block_selection import mask_from_flags, select_budget
from seerbench.methods.mean_correction import mean_corrected, mean_corrected_exactly
from seerbench.methods.protocol import Method
from seerbench.methods.registry import register

ALPHA = 0.1  # upstream's README


# It is no BlockSparse: on another kernel its plan would run without the means.
@register(
    "flashprefill-v2",
    cites="arXiv:2608.19758",
    fidelity="our port of the plan in square tiles, on our kernel; the mean correction in torch",
)
class FlashPrefillV2(Method[BlockMask]):
    """One choice of blocks per key/value head; skipped blocks count by their means."""

    block: int
    corrects_skipped = True
    takes_last_rows = True

    def __init__(
        self, sparsity: float | None = None, block: int = 128, alpha: float = ALPHA, dense_layers: int = 0
    ) -> None:
        """Make the method.

        Args:
            sparsity: requested share of causal blocks to skip, in place of alpha.
            block: tokens per block.
            alpha: least score of a kept block, as a share of its row's best.
            dense_layers: number of layers at the start that skip nothing.
        """
        self.sparsity, self.block, self.alpha, self.dense_layers = sparsity, block, alpha, dense_layers
        dense = f"first {dense_layers} layers dense" if dense_layers else None
        self.configuration = dense
        if sparsity is None:
            self.configuration = ", ".join(filter(None, (f"alpha {alpha:g}", dense)))
            self.last_rows_dense = LAST_ROWS

    def implementation(self, problem: AttentionProblem) -> str:
        return f"{kernel.implementation(problem)}+torch-mean"

    def refuses(self, problem: AttentionProblem) -> str | None:
        return kernel.refuses(problem)

    def with_threshold_for(self, q: Tensor, k: Tensor, layer: LayerContext) -> FlashPrefillV2:
        if self.sparsity is None:
            return self
        found = copy.copy(self)
        found.sparsity = None
        found.alpha = alpha_of(budget_limit(self._cost(q, k, layer), self.sparsity, self.last_rows_dense))
        return found

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        cost, tokens, group = self._cost(q, k, layer), q.shape[2], q.shape[1] // k.shape[1]
        if self.sparsity is not None:
            mask = select_budget(cost, self.sparsity, tokens, self.block, self.last_rows_dense)
        else:
            mask = mask_from_flags(cost <= -math.log(self.alpha), tokens, self.block, self.block)
        counts, lists = (x.repeat_interleave(group, 1) for x in (mask.kv_num_blocks, mask.kv_indices))
        return BlockMask.unchecked(counts, lists, tokens, self.block, self.block)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockMask) -> Tensor:
        return mean_corrected(q, k, v, plan)

    def exact(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockMask, dtype: torch.dtype) -> Tensor:
        return mean_corrected_exactly(q, k, v, plan, dtype)

    def _cost(self, q: Tensor, k: Tensor, layer: LayerContext) -> Tensor:
        """Return `cost_of` the scores of each key/value head, fp32 [B, Hk, n, n]; -inf throughout in a dense layer.

        Raises Refused where a sparsity is requested of a dense layer.
        """
        if layer.index < self.dense_layers:
            n = block_count(q.shape[2], self.block)
            if self.sparsity is not None:
                require_budget(1.0, self.sparsity, f"the first {self.dense_layers} layers are dense", n)
            return torch.full((*k.shape[:2], n, n), -torch.inf, device=q.device)
        scores = pooled_scores(q, k, self.block, from_first=True)
        if q.shape[2] % self.block:
            scores[..., -1] = -torch.inf  # the last block is not whole
        return cost_of(scores.unflatten(1, (k.shape[1], -1)).logsumexp(2), self.last_rows_dense)
