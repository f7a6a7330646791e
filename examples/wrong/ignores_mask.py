"""Deliberately wrong: it ignores the mask and computes dense attention. `seerbench compare` refuses to time it."""

from torch.nn.functional import scaled_dot_product_attention


def attention(q, k, v, mask):
    """Return [B, Hq, N, D] for q [B, Hq, N, D], k and v [B, Hk, N, D] and a BlockMask."""
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
