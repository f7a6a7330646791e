"""Sum an attention map over its diagonals."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def diagonal_sums(weights: Tensor) -> Tensor:
    """Sum the last L rows of an N x N map over each diagonal.

    Args:
        weights: the last L rows, [B, H, L, N].

    Returns:
        The sums over the pairs with query - key = d, for d = 0 .. N - 1, [B, H, N].
    """
    last, tokens = weights.shape[-2:]
    # Row i has diagonal N - 1 - c at key c - (last - 1 - i), which is column c + i after last - 1 zeros on the
    # left. A view in which each row begins one element later therefore has one diagonal per column.
    padded = F.pad(weights, (last - 1, 0)).contiguous()
    width = padded.shape[-1]
    sheared = padded.as_strided(
        (*padded.shape[:2], last, tokens), (padded.stride(0), padded.stride(1), width + 1, 1)
    )
    return sheared.sum(-2).flip(-1)
