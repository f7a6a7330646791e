"""Deliberately wrong: counts whole blocks only, so the last rows of an odd length are never written."""

import torch

from seerbench.core.reference import reference_attention


def attention(q, k, v, mask):
    out = torch.empty_like(q)
    whole = q.shape[2] // mask.block_q * mask.block_q
    out[:, :, :whole] = reference_attention(q, k, v, mask, q.dtype)[0][:, :, :whole]
    return out
