"""block_sums."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def diagonal_sums(weights: Tensor) -> Tensor:
    """[B, H, L, N], the last L rows of an N x N map -> its sums over the diagonals 0 .. N - 1, [B, H, N]."""
    last, tokens = weights.shape[-2:]
    # Row i holds diagonal N - 1 - c at key c - (last - 1 - i). With last - 1 zeros to the left that is place c + i:
    # one step further than a row's stride from row to row, so that a sheared view lines the diagonals up.
    padded = F.pad(weights, (last - 1, 0)).contiguous()
    width = padded.shape[-1]
    sheared = padded.as_strided(
        (*padded.shape[:2], last, tokens), (padded.stride(0), padded.stride(1), width + 1, 1)
    )
    return sheared.sum(-2).flip(-1)
