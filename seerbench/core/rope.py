"""rope."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from seerbench.core.problem import Rope


@functools.lru_cache(maxsize=8)
def block_starts(blocks: int, block: int, device: torch.device) -> Tensor:
    """Position of each block's first token, int64 [blocks]: the same tensor for all layers (models.rope_of)."""
    return torch.arange(blocks, device=device) * block


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, rotate-half layout: x [B, H, n, D], cos and sin [n, D]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * sin.to(x.dtype)


def plain_rope(head_dim: int, theta: float = 500_000.0) -> Rope:
    """Llama 3's rotary embedding without its length scaling: int positions [n] -> cos, sin [n, D].

    Like a model's (models.rope_of) it makes the tables of one tensor of positions once.
    """

    @functools.lru_cache(maxsize=1)
    def rope(positions: Tensor) -> tuple[Tensor, Tensor]:
        powers = torch.arange(0, head_dim, 2, device=positions.device) / head_dim
        angles = positions[:, None] * theta**-powers
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()

    return rope


def rope_of(model: Any) -> Rope:
    """The backbone's own rotary embedding at any positions, its scaling included: [n] -> cos, sin [n, D].

    All layers ask for the same tensor of positions (gate.block_starts), so its tables are made once: otherwise
    their twenty small launches a layer are most of a gate's time in a short prefill.
    """
    rotary, device = model.model.rotary_emb, next(model.parameters()).device

    def rope(positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = rotary(torch.zeros(1, device=device), positions[None].to(device))
        return cos[0], sin[0]

    return functools.lru_cache(maxsize=2)(rope)
