"""Select blocks from scores: SeerAttention's top-k rule, its threshold rule, and one budget for all heads.

These are the plain torch references. They run on any device. `methods/block_selection.py` offers the same
functions with GPU kernels where those apply, and methods call them there.

Each rule has two forms: `keep_*` returns flags, bool [B, Hq, nq, nk]; `select_*` returns a BlockMask.
Equal scores are ranked by their index, the lower index first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask, causal_blocks
from seerbench.errors import MaskError


def top_k_count(blocks: int, sparsity: float) -> int:
    """Return k, the number of blocks that every row keeps: max(1, floor((1 - sqrt(1 - nz)) n)), nz = 1 - sparsity.

    Rows with fewer than k visible blocks keep them all, so the sparsity is an average over the causal triangle.

    Args:
        blocks: n, the number of key blocks.
        sparsity: share of the causal blocks to skip, in [0, 1).

    Raises:
        ValueError: if the sparsity is outside [0, 1).

    Source: SeerAttention v1 (arXiv:2410.13276v1), section 3.1.
    """
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity is the share of blocks skipped, in [0, 1), not {sparsity}")
    # 1 - (1 - s) is not s in floating point; rounding keeps floor() from losing an exact integer.
    return max(1, math.floor(round((1.0 - math.sqrt(sparsity)) * blocks, 9)))


def top_k_density(blocks: int, sparsity: float) -> float:
    """Return the share of the causal blocks that the top-k rule keeps: the budget of every other method."""
    k = top_k_count(blocks, sparsity)
    return (k * blocks - k * (k - 1) / 2) / (blocks * (blocks + 1) / 2)


def keep_top_k(scores: Tensor, sparsity: float, last_rows_dense: int = 0) -> Tensor:
    """Flag the best k blocks of each row of scores [B, Hq, nq, nk], bool of that shape.

    Args:
        scores: -inf where a block is not visible; such a block may be flagged in a row with fewer than k others.
            NaN ranks as -inf does.
        sparsity: decides k (`top_k_count`).
        last_rows_dense: number of rows at the end in which every block is flagged.
    """
    k = top_k_count(scores.shape[-1], sparsity)
    scores = scores.masked_fill(scores.isnan(), -math.inf)
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)
    return _with_dense_rows(kept, last_rows_dense)


def keep_threshold(scores: Tensor, threshold: float, last_rows_dense: int = 0) -> Tensor:
    """Flag the blocks whose softmax(scores) exceeds `threshold`, bool [B, Hq, nq, nk].

    A row in which no block exceeds it keeps its best block. This is the rule of SeerAttention v2.

    Args:
        scores: [B, Hq, nq, nk], -inf where a block is not visible. NaN counts as -inf.
        threshold: smallest share of a row's softmax, exclusive.
        last_rows_dense: number of rows at the end in which every block is flagged.
    """
    scores = scores.masked_fill(scores.isnan(), -math.inf)
    kept = scores.softmax(-1) > threshold
    best = torch.zeros_like(kept).scatter_(-1, scores.argmax(-1, keepdim=True), True)
    kept |= best & ~kept.any(-1, keepdim=True)
    return _with_dense_rows(kept, last_rows_dense)


def keep_budget(cost: Tensor, sparsity: float) -> Tensor:
    """Flag the blocks of lowest cost, at most as many in all heads together as the top-k rule, bool [B, Hq, n, n].

    The diagonal and blocks of cost -inf are always kept and count towards the budget, even if they exceed it.
    Other blocks of equal cost are kept or skipped together. If keeping them would exceed the budget they are
    skipped, and the realised sparsity is then above the requested one.

    Args:
        cost: fp32 [B, Hq, n, n]; low cost is kept.
        sparsity: decides the budget (`top_k_density`).
    """
    diagonal = torch.eye(cost.shape[-1], dtype=torch.bool, device=cost.device)
    limit = budget_limit(cost, sparsity)[:, None, None, None]
    return (cost <= limit) | diagonal


def budget_limit(cost: Tensor, sparsity: float) -> Tensor:
    """Return the highest cost that `keep_budget` keeps, fp32 [B]. cost: fp32 [B, Hq, n, n]."""
    n = cost.shape[-1]
    visible = causal_blocks(n, 1, 1, cost.device)
    cost = cost.masked_fill(torch.eye(n, dtype=torch.bool, device=cost.device), -math.inf)
    budget = max(1, round(top_k_density(n, sparsity) * int(visible.sum()) * cost.shape[1]))
    limit = cost[:, :, visible].flatten(1).kthvalue(budget, dim=1).values
    counts = ((cost <= limit[:, None, None, None]) & visible).flatten(1).sum(1)
    below = torch.nextafter(limit, torch.full_like(limit, -math.inf))
    return torch.where(counts <= budget, limit, below)


def select_top_k(
    scores: Tensor, sparsity: float, tokens: int, block: int, last_rows_dense: int = 0, block_q: int | None = None
) -> BlockMask:
    """Select the best k blocks of each row.

    Args:
        scores: [B, Hq, nq, nk], -inf where a block is not visible.
        sparsity: decides k (`top_k_count`).
        tokens: N, the tokens that the rows and columns cover.
        block: tokens per key block.
        last_rows_dense: number of block rows at the end that keep every block.
        block_q: tokens per query block; by default `block`.
    """
    return BlockMask.from_dense(keep_top_k(scores, sparsity, last_rows_dense), tokens, block_q or block, block)


def select_threshold(
    scores: Tensor, threshold: float, tokens: int, block: int, last_rows_dense: int = 0
) -> BlockMask:
    """Select the blocks whose softmax(scores) exceeds `threshold`; a row without any keeps its best block.

    Args:
        scores: [B, Hq, n, n], -inf where a block is not visible.
        threshold: smallest share of a row's softmax, exclusive.
        tokens: N, the tokens that the rows and columns cover.
        block: tokens per query block and per key block.
        last_rows_dense: number of block rows at the end that keep every block.
    """
    return BlockMask.from_dense(keep_threshold(scores, threshold, last_rows_dense), tokens, block, block)


def select_budget(cost: Tensor, sparsity: float, tokens: int, block: int) -> BlockMask:
    """Select the blocks of lowest cost by one threshold for all heads (`keep_budget`).

    Args:
        cost: fp32 [B, Hq, n, n]; low cost is kept.
        sparsity: decides the budget (`top_k_density`).
        tokens: N, the tokens that the rows and columns cover.
        block: tokens per query block and per key block.
    """
    return BlockMask.from_dense(keep_budget(cost, sparsity), tokens, block, block)


def _with_dense_rows(kept: Tensor, last_rows: int) -> Tensor:
    if last_rows < 0:
        raise MaskError(f"the number of dense rows is at least 0, not {last_rows}")
    if last_rows:
        kept[..., -last_rows:, :] = True  # BlockMask.from_dense drops the blocks above the diagonal
    return kept
