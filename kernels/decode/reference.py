"""Attention of one new token over listed blocks of a cache, in plain torch, on any device: gather, then softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from seerbench.kernels.decode.lists import CacheLists


def decode_attention(q: Tensor, k: Tensor, v: Tensor, lists: CacheLists) -> Tensor:
    """Return attention over the listed blocks, [B, Hq, 1, D] in q's dtype.

    The arguments are those of `api.decode_attention`. It computes in fp32 or a wider dtype, and copies the keys and
    values that are read.
    """
    (batch, heads, _, head_dim), kv_heads = q.shape, k.shape[1]
    dtype = torch.promote_types(q.dtype, torch.float32)
    inside = torch.arange(lists.block, device=q.device)
    listed = torch.arange(lists.blocks.shape[-1], device=q.device) < lists.counts[..., None]
    # [B, Hk, width, block]
    tokens = lists.first[:, None, None, None] + lists.blocks[..., None] * lists.block + inside
    seen = (listed[..., None] & (tokens < lists.end[:, None, None, None])).flatten(2)[:, :, None]
    places = tokens.flatten(2).clamp(max=k.shape[2] - 1).long()[..., None].expand(-1, -1, -1, head_dim)
    k, v = k.gather(2, places).to(dtype), v.gather(2, places).to(dtype)
    rows = q.to(dtype).reshape(batch, kv_heads, -1, head_dim) * head_dim**-0.5
    scores = (rows @ k.mT).masked_fill(~seen, -torch.inf)
    weights = scores.softmax(-1).where(seen, 0.0)  # without a key, the softmax of -inf alone is NaN
    values = v.where(seen.mT, 0.0)  # the room behind a cache's tokens may hold anything, also NaN
    return (weights @ values).view(batch, heads, 1, head_dim).to(q.dtype)
