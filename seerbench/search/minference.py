"""Search MInference's pattern for each head of a model: its kind and its budgets, on one text.

    minference_patterns   the search, through the layers of a model
    search_patterns       the search within one layer

This is the offline part of MInference. The step `search-patterns` writes what it finds to a file, which the method
(baselines/minference) reads. Source: arXiv:2407.02490, algorithm 1 and table 7.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seerbench.baselines.minference.estimate import pattern_tiles
from seerbench.baselines.minference.patterns import Pattern, scaled_budgets
from seerbench.core.problem import LayerContext
from seerbench.core.reference import repeat_kv
from seerbench.kernels.vertical_slash.api import tile_attention
from seerbench.models.hugging_face import for_each_layer

# Number of bisections for the factor of a candidate's budgets. They resolve a factor from 1/32 to 32 to within 3%.
BISECTIONS = 8
CALIBRATION_TOKENS = 30_720  # tokens of the paper's calibration text, to which the budgets of table 7 belong


@torch.no_grad()
def minference_patterns(model: Any, window: np.ndarray, block: int) -> list[list[Pattern]]:
    """Return the best pattern of each layer and head on one window of text.

    Args:
        model: a causal language model of transformers.
        window: int [N], tokens of the calibration text.
        block: tokens per block.
    """
    patterns: dict[int, list[Pattern]] = {}

    def see(layer: LayerContext, q: Tensor, k: Tensor, v: Tensor) -> None:
        patterns[layer.index] = search_patterns(q, k, v, block)

    for_each_layer(model, torch.from_numpy(window).long()[None].to(next(model.parameters()).device), see)
    return [patterns[layer] for layer in sorted(patterns)]


def search_patterns(q: Tensor, k: Tensor, v: Tensor, block: int = 64) -> list[Pattern]:
    """Return the best candidate of each head of one layer, with its score, by the output that the kernel computes.

    The search is kernel-aware, as algorithm 1 is. The budgets of a candidate are scaled, head by head, until it
    executes at most as many tiles as the A-shape; tiles that are always executed may exceed that. Then the
    candidate runs through the kernel. Its score is 1 - ||sparse - dense|| / ||dense|| of the attention output,
    which the paper calls the recall of the attention output.

    Args:
        q: [B, Hq, N, D] of the calibration text.
        k: [B, Hk, N, D]; `v` has the same shape.
        block: tokens per block.
    """
    heads = q.shape[1]
    a_shape, *others = candidates(q.shape[2])
    limit = pattern_tiles(q, k, [a_shape] * heads, block).head_density().mean(0)
    tried = [[a_shape] * heads, *(_scaled_within(q, k, other, limit, block) for other in others)]
    dense = F.scaled_dot_product_attention(q, repeat_kv(k, heads), repeat_kv(v, heads), is_causal=True)
    norm = dense.float().square().sum((0, 2, 3)).sqrt()
    scores = []
    for patterns in tried:
        out = tile_attention(q, k, v, pattern_tiles(q, k, patterns, block))
        scores.append(1 - (out - dense).float().square().sum((0, 2, 3)).sqrt() / norm)
    best = torch.stack(scores).max(0)
    return [
        replace(tried[candidate][head], score=round(score, 6))
        for head, (candidate, score) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    ]


def candidates(tokens: int) -> list[Pattern]:
    """Return the patterns that the search tries at a length: the paper's table 7, budgets in proportion.

    The A-shape is the first. Its number of executed tiles limits those of the other candidates.
    """
    scale = tokens / CALIBRATION_TOKENS
    paper = [
        ("stream_llm", 1024, 4096),
        ("vertical_and_slash", 30, 2048),
        ("vertical_and_slash", 100, 1800),
        ("vertical_and_slash", 500, 1500),
        ("vertical_and_slash", 3000, 200),
        ("block_sparse", 100, 1),
    ]
    return [Pattern(kind, max(1, round(a * scale)), max(1, round(b * scale))) for kind, a, b in paper]


def _scaled_within(q: Tensor, k: Tensor, pattern: Pattern, limit: Tensor, block: int) -> list[Pattern]:
    """Return the pattern of each head with budgets scaled to a density of at most `limit`.

    Args:
        limit: float [Hq], executed tiles over causal tiles.
    """
    low, high = torch.full_like(limit, 1 / 32), torch.full_like(limit, 32.0)
    for _ in range(BISECTIONS):
        middle = (low * high).sqrt()
        density = pattern_tiles(q, k, _for_each_head(pattern, middle), block).head_density().mean(0)
        low, high = torch.where(density <= limit, middle, low), torch.where(density <= limit, high, middle)
    return _for_each_head(pattern, low)


def _for_each_head(pattern: Pattern, factors: Tensor) -> list[Pattern]:
    """Return one pattern per head, its budgets multiplied by the head's factor [Hq]."""
    return [scaled_budgets([pattern], factor)[0] for factor in factors.tolist()]
