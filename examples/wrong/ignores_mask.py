"""Deliberately wrong: dense attention, whatever the mask says. `seerbench compare` refuses to time it."""

from torch.nn.functional import scaled_dot_product_attention


def attention(q, k, v, mask):
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
