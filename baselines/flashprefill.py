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

from seerbench.attention import BlockMask, BlockSparse, Layer, block_count, causal_blocks, oracle, repeat_kv
from seerbench.gate import budget_limit, pool_blocks, select_budget
from seerbench.registry import register

ALPHA = 0.1  # V2's evaluations; V1's code has 0.7 as its default
SINKS, WINDOW, LAST_ROWS = 2, 4, 2  # blocks; V1's code
SMALLEST = 1e-300  # alpha that still has a logarithm
CHUNK = 2048  # query rows whose pooled scores exist at one time


@register("flashprefill", cites="arXiv:2603.06199", fidelity="our port of the plan, on our kernel")
class FlashPrefill(BlockSparse):
    """Blocks within a factor of their row's best pooled score, sinks and a window."""

    def __init__(self, sparsity: float | None = None, block: int = 128, alpha: float = ALPHA) -> None:
        """sparsity: in place of alpha, when given."""
        self.sparsity, self.block, self.alpha = sparsity, block, alpha

    def settled(self, q: Tensor, k: Tensor, layer: Layer) -> FlashPrefill:
        """The same at the alpha that a requested sparsity comes to on this input: what a timing runs."""
        limit = float(budget_limit(self._cost(q, k), self.sparsity).max())
        return FlashPrefill(block=self.block, alpha=max(math.exp(-limit), SMALLEST))

    def plan(self, q: Tensor, k: Tensor, layer: Layer) -> BlockMask:
        cost = self._cost(q, k)
        if self.sparsity is not None:
            return select_budget(cost, self.sparsity, q.shape[2], self.block)
        return BlockMask.from_dense(cost <= -math.log(self.alpha), q.shape[2], self.block, self.block)

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


def pooled_scores(q: Tensor, k: Tensor, block: int) -> Tensor:
    """log of the sum over a block's queries of exp(q . mean(k) / sqrt(D)), fp32 [B, Hq, n, n]; -inf: not seen."""
    if q.is_cuda:
        from seerbench.kernels import attn_gate
        from seerbench.kernels.pooled_scores import log_sums

        return log_sums(q, attn_gate.pool_blocks(k, block, ["avg"])["avg"], block)
    tokens, head_dim = q.shape[2], q.shape[3]
    pooled = repeat_kv(pool_blocks(k, block)["avg"], q.shape[1])
    n = pooled.shape[2]
    last_key = torch.arange(n, device=q.device) * block + block - 1
    scores = torch.full((*q.shape[:2], n, n), -torch.inf, dtype=torch.float32, device=q.device)
    rows = max(1, CHUNK // block) * block
    for start in range(0, tokens, rows):
        part = (q[:, :, start : start + rows] @ pooled.mT).float() * head_dim**-0.5
        queries = torch.arange(start, start + part.shape[2], device=q.device)
        part = part.masked_fill_(last_key > queries[:, None], -torch.inf)
        part = torch.nn.functional.pad(part, (0, 0, 0, -part.shape[2] % block), value=-torch.inf)
        first = start // block
        scores[:, :, first : first + part.shape[2] // block] = part.unflatten(2, (-1, block)).logsumexp(-2)
    return scores


def mean_corrected(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """Attention over a mask's blocks and, for each skipped causal block, its mean key and value: any BlockMask.

    q [B, Hq, N, D], k and v [B, Hk, N, D] -> [B, Hq, N, D] in q's dtype.
    """
    if q.is_cuda:
        from seerbench.kernels.block_sparse_attention import block_sparse_attention_with_lse

        kept = block_sparse_attention_with_lse(q, k, v, mask)
    else:
        kept = oracle(q, k, v, mask, torch.float32)
    return _with_means(q, k, v, mask, *kept, torch.float32).to(q.dtype)


def mean_corrected_exactly(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, dtype: torch.dtype) -> Tensor:
    """The same in `dtype` throughout: what `mean_corrected` is checked against. O(N^2) memory."""
    return _with_means(q, k, v, mask, *oracle(q, k, v, mask, dtype), dtype)


def _with_means(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, out: Tensor, lse: Tensor, dtype: torch.dtype
) -> Tensor:
    """Merge attention over the kept blocks, out and lse, with the means of the skipped ones, by chunks of rows."""
    pooled_k, pooled_v = (repeat_kv(pool_blocks(x, mask.block_k)["avg"], q.shape[1]).to(dtype) for x in (k, v))
    tokens, n = mask.tokens, block_count(mask.tokens, mask.block_k)
    sizes = (tokens - torch.arange(n, device=q.device) * mask.block_k).clamp(max=mask.block_k)
    skipped = causal_blocks(tokens, mask.block_q, mask.block_k, q.device) & ~mask.to_dense()
    result = torch.empty(q.shape, dtype=dtype, device=q.device)
    for start in range(0, tokens, CHUNK):
        rows = torch.arange(start, min(start + CHUNK, tokens), device=q.device)
        # A skipped block on the diagonal holds keys that the query may not see: it stays out.
        whole = (torch.arange(n, device=q.device) + 1) * mask.block_k - 1 <= rows[:, None]
        seen = skipped[:, :, rows // mask.block_q] & whole
        logits = q[:, :, rows].to(dtype) @ pooled_k.mT * q.shape[-1] ** -0.5 + sizes.to(dtype).log()
        logits = logits.masked_fill(~seen, -torch.inf)
        total = torch.logaddexp(logits.logsumexp(-1), lse[:, :, rows])
        weights = (logits - total[..., None]).exp().nan_to_num(0.0)
        kept = (lse[:, :, rows] - total).exp().nan_to_num(0.0)[..., None]
        result[:, :, rows] = kept * out[:, :, rows].to(dtype) + weights @ pooled_v
    return result
