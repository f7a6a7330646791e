"""mean_correction."""

from __future__ import annotations

import torch
from torch import Tensor

from seerbench.baselines.flashprefill import CHUNK
from seerbench.core.block_mask import BlockMask, block_count, causal_blocks
from seerbench.core.reference import reference_attention, repeat_kv
from seerbench.methods.gate import pool_blocks


def mean_corrected(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """Attention over a mask's blocks and, for each skipped causal block, its mean key and value: any BlockMask.

    q [B, Hq, N, D], k and v [B, Hk, N, D] -> [B, Hq, N, D] in q's dtype.
    """
    if q.is_cuda:
        from seerbench.kernels.block_sparse.api import block_sparse_attention_with_lse

        kept = block_sparse_attention_with_lse(q, k, v, mask)
    else:
        kept = reference_attention(q, k, v, mask, torch.float32)
    return _with_means(q, k, v, mask, *kept, torch.float32).to(q.dtype)


def mean_corrected_exactly(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, dtype: torch.dtype) -> Tensor:
    """The same in `dtype` throughout: what `mean_corrected` is checked against. O(N^2) memory."""
    return _with_means(q, k, v, mask, *reference_attention(q, k, v, mask, dtype), dtype)


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
