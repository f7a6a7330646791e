"""Dense attention of one new token over a cache, by PyTorch's SDPA, on any device."""

from __future__ import annotations

from torch import Tensor, nn


def dense_decode_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
    """Return attention of one new token per sequence over all tokens of a cache, [B, Hq, 1, D].

    Args:
        q: queries [B, Hq, 1, D] after RoPE.
        k: keys [B, Hk, N, D] after RoPE.
        v: values, of the same shape.
        visible: which tokens each sequence sees, bool that broadcasts to [B, 1, 1, N]; None for all.
    """
    # The query heads of a group stand as the queries of one head, so that no key is copied for each of them.
    grouped = q.reshape(len(q), k.shape[1], -1, q.shape[3])
    return nn.functional.scaled_dot_product_attention(grouped, k, v, attn_mask=visible).reshape(q.shape)
