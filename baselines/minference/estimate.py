"""Estimate which columns, diagonals and blocks each head should keep, from q and k and the heads' patterns.

    pattern_tiles           the plan of one layer, for heads of all kinds
    select_vertical_slash   the columns and diagonals of vertical-slash heads
    vertical_slash_scores   the scores that they are selected by
    ranks                   scores to places in descending order
    with_dense_rows         a plan whose last rows read every key

Source: MInference (arXiv:2407.02490), algorithms 1 to 3, and microsoft/MInference at fb56c917.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from seerbench.baselines.minference.patterns import Pattern, at_block
from seerbench.core.block_mask import block_count
from seerbench.core.block_sums import diagonal_sums
from seerbench.core.reference import grouped_products
from seerbench.kernels.vertical_slash.api import vertical_slash_tiles
from seerbench.kernels.vertical_slash.tile_mask import TileMask
from seerbench.methods.block_selection import mask_from_flags

# The last queries, by whose attention columns and diagonals are scored: upstream's last_q.
LAST_QUERIES = 64
# First columns and diagonals that are always kept: upstream sets their scores to infinity, at blocks of 64.
FORCED_COLUMNS, FORCED_DIAGONALS = 30, 100
# Smallest budgets of a vertical-slash head, whatever its pattern says: upstream's, at blocks of 64.
MIN_COLUMNS, MIN_DIAGONALS = 30, 50


def pattern_tiles(q: Tensor, k: Tensor, patterns: Sequence[Pattern], block: int = 64) -> TileMask:
    """Return the plan of one layer as tiles and gathered columns.

    Args:
        q: queries [B, Hq, N, D].
        k: keys [B, Hk, N, D].
        patterns: one pattern per query head.
        block: tokens per tile.

    Raises:
        ValueError: there are not as many patterns as heads.
    """
    if len(patterns) != q.shape[1]:
        raise ValueError(f"{len(patterns)} patterns for {q.shape[1]} heads")
    vertical_slash = vertical_slash_tiles(*select_vertical_slash(q, k, patterns, block), block)
    by_blocks = [h for h, pattern in enumerate(patterns) if pattern.kind != "vertical_and_slash"]
    if not by_blocks:
        return vertical_slash
    # The flags of vertical-slash heads are not used.
    kept = torch.stack([_static_blocks(q, k, h, patterns[h], block) for h in range(q.shape[1])], 1)
    blocks = mask_from_flags(kept, q.shape[2], block, block)
    other = torch.tensor([h in by_blocks for h in range(q.shape[1])], device=q.device)[None, :, None]
    width = max(vertical_slash.tile_starts.shape[-1], blocks.kv_indices.shape[-1])
    slash_starts, block_starts = (
        F.pad(lists, (0, width - lists.shape[-1]))
        for lists in (vertical_slash.tile_starts, blocks.kv_indices * block)
    )
    return TileMask.unchecked(
        torch.where(other, blocks.kv_num_blocks, vertical_slash.tile_counts),
        torch.where(other[..., None], block_starts, slash_starts),
        vertical_slash.column_counts.masked_fill(other, 0),
        vertical_slash.columns.masked_fill(other[..., None], 0),
        q.shape[2],
        block,
    )


def with_dense_rows(plan: TileMask, count: int) -> TileMask:
    """Return the plan with the last `count` rows of tiles dense: all their tiles, and no gathered columns."""
    n, tile, device = plan.tile_counts.shape[-1], plan.tile, plan.tile_starts.device
    width = max(n, plan.tile_starts.shape[-1])
    row, place = torch.arange(n, device=device), torch.arange(width, device=device)
    dense = row >= n - count
    every = torch.where(place <= row[:, None], place * tile, 0).int()
    starts = F.pad(plan.tile_starts, (0, width - plan.tile_starts.shape[-1]))
    return TileMask.unchecked(
        torch.where(dense, (row + 1).int(), plan.tile_counts),
        torch.where(dense[:, None], every, starts),
        plan.column_counts.masked_fill(dense, 0),
        plan.columns.masked_fill(dense[:, None], 0),
        plan.tokens,
        tile,
    )


def _static_blocks(q: Tensor, k: Tensor, head: int, pattern: Pattern, block: int) -> Tensor:
    """Return the blocks that an A-shape or block-sparse head keeps, bool [B, n, n].

    For a vertical-slash head it is the diagonal alone.
    """
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
    """Select the columns and diagonals of vertical-slash heads; other heads get diagonal 0 alone.

    Args:
        q: queries [B, Hq, N, D].
        k: keys [B, Hk, N, D].
        patterns: one pattern per query head.
        block: tokens per tile; the smallest budgets and the forced runs scale with it.

    Returns:
        Flags of the columns and of the diagonals, bool [B, Hq, N] each.
    """
    budgets = [(p.first, p.second) if p.kind == "vertical_and_slash" else (0, 0) for p in patterns]
    minimum = torch.tensor([at_block(MIN_COLUMNS, block), at_block(MIN_DIAGONALS, block)])
    wanted = torch.tensor(budgets)
    wanted = torch.where(wanted > 0, torch.maximum(wanted, minimum), wanted).to(q.device)
    columns, diagonals = (ranks(scores) for scores in vertical_slash_scores(q, k, block / 64))
    picked = diagonals < wanted[:, 1, None]
    picked[..., 0] = True
    return columns < wanted[:, 0, None], picked


def vertical_slash_scores(q: Tensor, k: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Score the N columns and the N diagonals by the attention of the last queries.

    Diagonal d has the pairs with query - key = d. Entries that are always kept have the score +inf.

    Args:
        q: queries [B, Hq, N, D].
        k: keys [B, Hk, N, D].
        scale: factor on the number of entries that are always kept: tokens per block over the paper's 64. Without
            it they would fill the whole budget of a short context with small blocks.

    Returns:
        The scores of the columns and of the diagonals, fp32 [B, Hq, N] each.
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


def ranks(scores: Tensor) -> Tensor:
    """Return the rank of each score, fp32 [..., N]: 0 for the largest; ties go to the lower index."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(scores.shape[-1], device=scores.device, dtype=torch.float32)
    return torch.empty_like(scores).scatter_(-1, order, places.expand_as(scores).contiguous())
