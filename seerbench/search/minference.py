"""minference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seerbench.baselines.minference.estimate import pattern_tiles
from seerbench.baselines.minference.patterns import Pattern, _times
from seerbench.core.problem import LayerContext
from seerbench.core.reference import repeat_kv
from seerbench.models.hugging_face import for_each_layer

FITS = 8  # of a candidate's factor in the offline search, between 1/32 and 32: to 3%


def candidates(tokens: int) -> list[Pattern]:
    """What the search tries: the paper's table 7, budgets in proportion to its 30k calibration tokens."""
    scale = tokens / 30_720
    paper = [
        ("stream_llm", 1024, 4096),  # first: its cost in the kernel is what the others may spend
        ("vertical_and_slash", 30, 2048),
        ("vertical_and_slash", 100, 1800),
        ("vertical_and_slash", 500, 1500),
        ("vertical_and_slash", 3000, 200),
        ("block_sparse", 100, 1),
    ]
    return [Pattern(kind, max(1, round(a * scale)), max(1, round(b * scale))) for kind, a, b in paper]


def search_patterns(q: Tensor, k: Tensor, v: Tensor, block: int = 64) -> list[Pattern]:
    """The best candidate of each head of one layer, by the output that the kernel really gives.

    q [B, Hq, N, D], k and v [B, Hk, N, D] of the calibration text. Kernel-aware, as the paper's algorithm 1: the
    budgets of a candidate are scaled, head by head, until it executes as many tiles as the A-shape, then it
    runs through the kernel and is scored by what the output keeps, 1 - ||sparse - dense|| / ||dense|| (the
    paper's "recall of the attention output"). Only an upper limit where the forced columns and diagonals cost more.
    """
    from seerbench.kernels.vertical_slash.attention import tile_attention

    heads = q.shape[1]
    shape, *others = candidates(q.shape[2])
    limit = pattern_tiles(q, k, [shape] * heads, block).head_density().mean(0)
    tried = [[shape] * heads, *(_within(q, k, other, limit, block) for other in others)]
    dense = F.scaled_dot_product_attention(q, repeat_kv(k, heads), repeat_kv(v, heads), is_causal=True)
    norm = dense.float().square().sum((0, 2, 3)).sqrt()
    scores = []
    for patterns in tried:
        out = tile_attention(q, k, v, pattern_tiles(q, k, patterns, block))
        scores.append(1 - (out - dense).float().square().sum((0, 2, 3)).sqrt() / norm)
    best = torch.stack(scores).max(0)
    return [
        replace(tried[i][head], score=round(score, 6))
        for head, (i, score) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    ]


def _within(q: Tensor, k: Tensor, pattern: Pattern, limit: Tensor, block: int) -> list[Pattern]:
    """The pattern of each head with its budgets scaled to at most `limit` [Hq], in executed over causal tiles."""
    low, high = torch.full_like(limit, 1 / 32), torch.full_like(limit, 32.0)
    for _ in range(FITS):
        middle = (low * high).sqrt()
        density = pattern_tiles(q, k, _each(pattern, middle), block).head_density().mean(0)
        low, high = torch.where(density <= limit, middle, low), torch.where(density <= limit, high, middle)
    return _each(pattern, low)


def _each(pattern: Pattern, factors: Tensor) -> list[Pattern]:
    return [_times([pattern], factor)[0] for factor in factors.tolist()]


@torch.no_grad()
def minference_patterns(model: Any, window: np.ndarray, block: int) -> list[list[Pattern]]:
    """MInference's offline search on one window of text: the best pattern of each layer and head."""
    found: dict[int, list[Pattern]] = {}

    def see(layer: LayerContext, q: Tensor, k: Tensor, v: Tensor) -> None:
        found[layer.index] = search_patterns(q, k, v, block)

    for_each_layer(model, torch.from_numpy(window).long()[None].to(next(model.parameters()).device), see)
    return [found[layer] for layer in sorted(found)]
