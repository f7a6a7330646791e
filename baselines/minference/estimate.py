"""estimate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from seerbench.baselines.minference.patterns import Pattern, _scaled
from seerbench.core.block_mask import block_count
from seerbench.core.block_sums import diagonal_sums
from seerbench.core.reference import grouped_products
from seerbench.kernels.vertical_slash.api import vertical_slash_tiles
from seerbench.kernels.vertical_slash.tile_mask import TileMask
from seerbench.methods.block_selection import mask_from_flags

LAST_QUERIES = 64  # queries that vote (upstream last_q)
FORCED_COLUMNS, FORCED_DIAGONALS = 30, 100  # upstream sets these scores to infinity, at blocks of 64
LEAST_COLUMNS, LEAST_DIAGONALS = 30, 50  # and never takes fewer


def pattern_tiles(q: Tensor, k: Tensor, patterns: Sequence[Pattern], block: int = 64) -> TileMask:
    """The plan of one layer: q [B, Hq, N, D], k [B, Hk, N, D] and a pattern a head."""
    if len(patterns) != q.shape[1]:
        raise ValueError(f"{len(patterns)} patterns for {q.shape[1]} heads")
    slashed = vertical_slash_tiles(*select_vertical_slash(q, k, patterns, block), block)
    listed = [h for h, pattern in enumerate(patterns) if pattern.kind != "vertical_and_slash"]
    if not listed:
        return slashed
    kept = torch.stack(
        [_static_blocks(q, k, h, patterns[h], block) for h in range(q.shape[1])], 1
    )  # rows of vertical-slash heads are not used
    blocks = mask_from_flags(kept, q.shape[2], block, block)
    other = torch.tensor([h in listed for h in range(q.shape[1])], device=q.device)[None, :, None]
    width = max(slashed.tile_starts.shape[-1], blocks.kv_indices.shape[-1])
    ours, theirs = (
        F.pad(lists, (0, width - lists.shape[-1])) for lists in (slashed.tile_starts, blocks.kv_indices * block)
    )
    return TileMask(
        torch.where(other, blocks.kv_num_blocks, slashed.tile_counts),
        torch.where(other[..., None], theirs, ours),
        slashed.column_counts.masked_fill(other, 0),
        slashed.columns.masked_fill(other[..., None], 0),
        q.shape[2],
        block,
    )


def _static_blocks(q: Tensor, k: Tensor, head: int, pattern: Pattern, block: int) -> Tensor:
    """A-shape or block-sparse head -> kept blocks, bool [B, n, n]; the diagonal alone for other kinds."""
    n, device = block_count(q.shape[2], block), q.device
    rows = torch.arange(n, device=device)
    diagonal = rows[:, None] == rows
    if pattern.kind == "stream_llm":
        near = (rows[:, None] - rows) * block < pattern.second + block - 1
        return ((rows * block < pattern.first) | near).expand(q.shape[0], n, n)
    if pattern.kind != "block_sparse":
        return diagonal.expand(q.shape[0], n, n)
    # Upstream pads the last block with zeros before the mean; the mean over its real tokens ranks better.
    pooled_q, pooled_k = (
        torch.stack([part.float().mean(1) for part in x.split(block, 1)], 1)
        for x in (q[:, head], k[:, head // (q.shape[1] // k.shape[1])])
    )
    scores = (pooled_q @ pooled_k.mT).masked_fill(rows > rows[:, None], -torch.inf)
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., : pattern.first]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True) | diagonal


def select_vertical_slash(
    q: Tensor, k: Tensor, patterns: Sequence[Pattern], block: int = 64
) -> tuple[Tensor, Tensor]:
    """The columns and diagonals of each head, bool [B, Hq, N] each (diagonal 0 alone for other kinds of heads)."""
    budgets = [(p.first, p.second) if p.kind == "vertical_and_slash" else (0, 0) for p in patterns]
    least = torch.tensor([_scaled(LEAST_COLUMNS, block), _scaled(LEAST_DIAGONALS, block)])
    wanted = torch.tensor(budgets)
    wanted = torch.where(wanted > 0, torch.maximum(wanted, least), wanted).to(q.device)
    columns, diagonals = (_ranks(scores) for scores in vertical_slash_scores(q, k, block / 64))
    picked = diagonals < wanted[:, 1, None]
    picked[..., 0] = True
    return columns < wanted[:, 0, None], picked


def vertical_slash_scores(q: Tensor, k: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """q [B, Hq, N, D], k [B, Hk, N, D] -> fp32 scores of the N columns and the N diagonals, [B, Hq, N] each.

    Diagonal d holds the pairs with query - key = d. Forced entries are +inf; `scale` shortens the forced
    runs where smaller blocks stand for the paper's 64 (they would fill a short context's whole budget).
    """
    tokens = q.shape[2]
    last = min(LAST_QUERIES, tokens)
    scores = grouped_products(q[:, :, -last:], k).float() * q.shape[-1] ** -0.5
    rows = torch.arange(tokens - last, tokens, device=q.device)[:, None]
    keys = torch.arange(tokens, device=q.device)[None, :]
    weights = scores.masked_fill_(keys > rows, -torch.inf).softmax(-1)
    columns = weights.sum(-2)
    columns[..., : max(1, round(FORCED_COLUMNS * scale))] = torch.inf
    diagonals = diagonal_sums(weights)
    diagonals[..., : max(1, round(FORCED_DIAGONALS * scale))] = torch.inf
    return columns, diagonals


def _ranks(scores: Tensor) -> Tensor:
    """Place of each entry in descending order, ties by index: fp32 like scores."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(scores.shape[-1], device=scores.device, dtype=torch.float32)
    return torch.empty_like(scores).scatter_(-1, order, places.expand_as(scores).contiguous())
