"""Compute attention by definition, in float64 by default: the reference of every kernel and method."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class TokenMask(Protocol):
    """A mask or plan that can say which pairs of query and key are computed, such as a BlockMask."""

    def to_token_mask(self) -> Tensor:
        """Return the computed pairs, causality included, bool [B, Hq, N, N] or a shape that broadcasts to it."""
        ...


def repeat_kv(x: Tensor, q_heads: int) -> Tensor:
    """Repeat keys or values [B, Hk, N, D] to [B, Hq, N, D]: query head h reads key/value head h // (Hq / Hk)."""
    return x if x.shape[1] == q_heads else x.repeat_interleave(q_heads // x.shape[1], dim=1)


def grouped_products(q: Tensor, k: Tensor) -> Tensor:
    """Multiply q [B, Hq, L, D] with the transposed k [B, Hk, N, D] of its group, [B, Hq, L, N].

    It is one product per key/value head, and k is not repeated.
    """
    rows = q.unflatten(1, (k.shape[1], -1))
    return (rows.flatten(2, 3) @ k.mT).unflatten(2, rows.shape[2:4]).flatten(1, 2)


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: TokenMask | Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Compute softmax attention over the pairs of a mask, in O(N^2) time and memory.

    Args:
        q: queries [B, Hq, N, D].
        k: keys [B, Hk, N, D].
        v: values [B, Hk, N, D].
        mask: a BlockMask or another plan with `to_token_mask`; or the pairs themselves, bool [B, Hq, N, N] with
            causality included; None for dense causal attention.
        dtype: of all arithmetic and of the results.

    Returns:
        The output [B, Hq, N, D] and the log-sum-exp [B, Hq, N]. A query that sees no key has output 0 and
        log-sum-exp -inf.
    """
    n, heads = q.shape[2], q.shape[1]
    q, k, v = q.to(dtype), repeat_kv(k, heads).to(dtype), repeat_kv(v, heads).to(dtype)
    if mask is None:
        pairs = torch.ones(n, n, dtype=torch.bool, device=q.device).tril()
    else:
        pairs = mask if isinstance(mask, Tensor) else mask.to_token_mask()
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~pairs, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp().masked_fill(~pairs, 0.0)  # -inf - -inf is NaN: empty rows
    return weights @ v, lse
