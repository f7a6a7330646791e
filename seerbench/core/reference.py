"""reference."""

from __future__ import annotations

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask


def repeat_kv(x: Tensor, q_heads: int) -> Tensor:
    """[B, Hk, N, D] -> [B, Hq, N, D]: query head h gets key/value head h // (Hq / Hk)."""
    return x if x.shape[1] == q_heads else x.repeat_interleave(q_heads // x.shape[1], dim=1)


def grouped_products(q: Tensor, k: Tensor) -> Tensor:
    """q [B, Hq, L, D] times k [B, Hk, N, D] of its group, [B, Hq, L, N]: one product a group, k not repeated."""
    rows = q.unflatten(1, (k.shape[1], -1))
    return (rows.flatten(2, 3) @ k.mT).unflatten(2, rows.shape[2:4]).flatten(1, 2)


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | None = None, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Softmax attention over the kept blocks only, by definition: what every kernel is tested against.

    q [B, Hq, N, D], k and v [B, Hk, N, D] -> output [B, Hq, N, D] and log-sum-exp [B, Hq, N], in
    `dtype`. A row that sees no key gives output 0 and log-sum-exp -inf. O(N^2) time and memory.
    """
    n, heads = q.shape[2], q.shape[1]
    q, k, v = q.to(dtype), repeat_kv(k, heads).to(dtype), repeat_kv(v, heads).to(dtype)
    seen = torch.ones(n, n, dtype=torch.bool, device=q.device).tril() if mask is None else mask.to_token_mask()
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp().masked_fill(~seen, 0.0)  # -inf - -inf is NaN: empty rows
    return weights @ v, lse
