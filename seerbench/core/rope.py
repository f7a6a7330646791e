"""Rotate queries and keys by their positions (RoPE), and make the tables of sines and cosines."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from seerbench.core.problem import Rope


@functools.lru_cache(maxsize=8)
def block_starts(blocks: int, block: int, device: torch.device) -> Tensor:
    """Return the position of each block's first token, int64 [blocks].

    All layers get the same tensor, so a model's rotary embedding makes its tables once for them.
    """
    return torch.arange(blocks, device=device) * block


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, H, n, D] by cos and sin [n, D], which have the rotate-half layout; computed in x's dtype."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * sin.to(x.dtype)


def plain_rope(head_dim: int, theta: float = 500_000.0) -> Rope:
    """Return Llama 3's rotary embedding without its length scaling.

    It keeps the tables of the last tensor of positions, so all layers share them.

    Args:
        head_dim: D.
        theta: the base of the frequencies.
    """

    @functools.lru_cache(maxsize=1)
    def rope(positions: Tensor) -> tuple[Tensor, Tensor]:
        powers = torch.arange(0, head_dim, 2, device=positions.device) / head_dim
        angles = positions[:, None] * theta**-powers
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()

    return rope
