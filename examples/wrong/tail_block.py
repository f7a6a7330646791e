"""Deliberately wrong: counts whole blocks only, so the last rows of an odd length are never written."""

import torch

from seerbench.attention import oracle


def attention(q, k, v, mask):
    out = torch.empty_like(q)
    whole = q.shape[2] // mask.block_q * mask.block_q
    out[:, :, :whole] = oracle(q, k, v, mask, q.dtype)[0][:, :, :whole]
    return out
