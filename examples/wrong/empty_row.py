"""Deliberately wrong: for a row without a block, softmax divides 0 by 0."""

import torch


def attention(q, k, v, mask):
    """Return [B, Hq, N, D] for q [B, Hq, N, D], k and v [B, Hk, N, D] and a BlockMask."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.masked_fill(~mask.to_token_mask(), -torch.inf).softmax(-1) @ v
