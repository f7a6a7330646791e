"""Let every skipped block enter the softmax as its mean key and value: FlashPrefill V2's mean correction.

    out = (sum over kept pairs of exp(q . k) v + sum over skipped blocks of n exp(q . mean(k)) mean(v)) / normaliser

Paper     arXiv:2608.19758
Fidelity  our own, in torch. It multiplies every query with all mean keys, so it is exact and not fast. It works
          with the BlockMask of any method (wrappers.MeanCorrected), and is part of flashprefill-v2. Upstream
          (qhfan/FlashPrefillv2, read at b0ea5c72) leaves out the same blocks: those that a query does not see whole
"""

from __future__ import annotations

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask, block_count, causal_blocks
from seerbench.core.reference import reference_attention, repeat_kv
from seerbench.kernels.attn_gate.reference import pool_blocks
from seerbench.kernels.block_sparse.api import block_sparse_attention_with_lse

# Query rows whose products with all mean keys exist at one time: at 128k tokens and 32 heads, 0.5 GiB in fp32.
QUERY_CHUNK = 2048


def mean_corrected(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """Compute attention over a mask's blocks, and over the mean key and value of each skipped causal block.

    Args:
        q: queries [B, Hq, N, D].
        k: keys [B, Hk, N, D].
        v: values [B, Hk, N, D].
        mask: the blocks that are read in full.

    Returns:
        The output [B, Hq, N, D] in q's dtype.
    """
    if q.is_cuda:
        out, lse = block_sparse_attention_with_lse(q, k, v, mask)
    else:
        out, lse = reference_attention(q, k, v, mask, torch.float32)
    return _with_means(q, k, v, mask, out, lse, torch.float32).to(q.dtype)


def mean_corrected_exactly(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, dtype: torch.dtype) -> Tensor:
    """Compute by definition what `mean_corrected` returns, all of it in `dtype` and in O(N^2) memory."""
    return _with_means(q, k, v, mask, *reference_attention(q, k, v, mask, dtype), dtype)


def _with_means(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, out: Tensor, lse: Tensor, dtype: torch.dtype
) -> Tensor:
    """Merge attention over the kept blocks with the means of the skipped blocks, one chunk of rows at a time.

    out [B, Hq, N, D] and lse [B, Hq, N] are output and log-sum-exp over the kept blocks.
    """
    pooled_k, pooled_v = (repeat_kv(pool_blocks(x, mask.block_k)["avg"], q.shape[1]).to(dtype) for x in (k, v))
    tokens, n = mask.tokens, block_count(mask.tokens, mask.block_k)
    sizes = (tokens - torch.arange(n, device=q.device) * mask.block_k).clamp(max=mask.block_k)
    skipped = causal_blocks(tokens, mask.block_q, mask.block_k, q.device) & ~mask.to_dense()
    result = torch.empty(q.shape, dtype=dtype, device=q.device)
    for start in range(0, tokens, QUERY_CHUNK):
        rows = torch.arange(start, min(start + QUERY_CHUNK, tokens), device=q.device)
        # A skipped block on the diagonal has keys that the query may not see, so it is left out.
        in_the_past = (torch.arange(n, device=q.device) + 1) * mask.block_k - 1 <= rows[:, None]
        visible = skipped[:, :, rows // mask.block_q] & in_the_past
        logits = q[:, :, rows].to(dtype) @ pooled_k.mT * q.shape[-1] ** -0.5 + sizes.to(dtype).log()
        logits = logits.masked_fill(~visible, -torch.inf)
        total = torch.logaddexp(logits.logsumexp(-1), lse[:, :, rows])
        weights = (logits - total[..., None]).exp().nan_to_num(0.0)
        share_of_kept = (lse[:, :, rows] - total).exp().nan_to_num(0.0)[..., None]
        result[:, :, rows] = share_of_kept * out[:, :, rows].to(dtype) + weights @ pooled_v
    return result
