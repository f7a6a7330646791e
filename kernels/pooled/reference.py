"""Pooled attention in plain torch, on any device: by its definition, and one row of blocks at a time.

Source: SeerAttention (arXiv:2410.13276), Algorithm 1. triton.py says what the map is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seerbench.core.block_mask import block_count
from seerbench.core.reference import repeat_kv


def naive_pooled_attention(
    q: Tensor, k: Tensor, v: Tensor, block: int = 64, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (o, lse, d) by definition, with the whole attention map in memory: O(N^2).

    This is the naive form of Figure 8 and, in float64, the oracle. The arguments and results are those
    of `api.pooled_attention`; everything is computed and returned in `dtype`, by default q's.
    """
    n, heads, dtype = q.shape[2], q.shape[1], dtype or q.dtype
    q, k, v = q.to(dtype), repeat_kv(k, heads).to(dtype), repeat_kv(v, heads).to(dtype)
    future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(future, -torch.inf)
    weights = scores.softmax(-1)
    # No probability is below 0, so padding the tail with 0 changes no maximum.
    tail = block_count(n, block) * block - n
    tiles = F.pad(weights, (0, tail, 0, tail)).unflatten(-1, (-1, block)).unflatten(-3, (-1, block))
    return weights @ v, scores.logsumexp(-1), tiles.amax((-3, -1))


@torch.no_grad()
def streamed(q: Tensor, k: Tensor, v: Tensor, block: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Return (o, lse, d) with a [block, N] strip of the map in memory at one time: O(N * block) per head.

    The arguments are those of `api.pooled_attention`. It computes in fp32 or a wider dtype, which lse has, and
    runs on a CPU.
    """
    batch, heads, n, _ = q.shape
    kv_heads, blocks = k.shape[1], block_count(n, block)
    given, dtype = q.dtype, torch.promote_types(q.dtype, torch.float32)
    # The query heads of a group side by side: one product per key/value head, and K is never repeated.
    q = (q.to(dtype) * q.shape[-1] ** -0.5).unflatten(1, (kv_heads, -1))  # [B, Hk, g, N, D]
    k, v = k.to(dtype), v.to(dtype)
    o = torch.empty(batch, heads, n, v.shape[-1], dtype=dtype, device=q.device)
    lse = torch.empty(batch, heads, n, dtype=dtype, device=q.device)
    d = torch.zeros(batch, heads, blocks, blocks, dtype=dtype, device=q.device)
    for i in range(blocks):
        start, end = i * block, min((i + 1) * block, n)
        rows = q[..., start:end, :]  # [B, Hk, g, rows, D]
        scores = (rows.flatten(2, 3) @ k[:, :, :end].transpose(-1, -2)).view(*rows.shape[:-1], end)
        future = torch.ones(end - start, end - start, dtype=torch.bool, device=q.device).triu(1)
        scores[..., start:].masked_fill_(future, -torch.inf)
        row_lse = scores.logsumexp(-1, keepdim=True)
        weights = scores.sub_(row_lse).exp_()
        lse[:, :, start:end] = row_lse.flatten(1, 2).squeeze(-1)
        o[:, :, start:end] = (weights.flatten(2, 3) @ v[:, :, :end]).view(batch, heads, end - start, -1)
        columns = F.pad(weights.amax(-2).flatten(1, 2), (0, (i + 1) * block - end))  # [B, Hq, (i+1) block]
        d[:, :, i, : i + 1] = columns.unflatten(-1, (i + 1, block)).amax(-1)
    return o.to(given), lse, d.to(given)
