"""Select blocks from scores: SeerAttention's top-k rule, its threshold rule, and one budget for all heads.

These are the plain torch references. They run on any device. `methods/block_selection.py` offers the same
functions with GPU kernels where those apply, and methods call them there.

A requested sparsity buys the same number of blocks whatever the rule: the budget (`top_k_density`). Blocks that
are always kept, such as dense rows at the end, are paid from it. A rule that cannot come within TOLERANCE of the
request raises Refused.

Each rule has two forms: `keep_*` returns flags, bool [B, Hq, nq, nk]; `select_*` returns a BlockMask.
Equal scores are ranked by their index, the lower index first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask, causal_blocks
from seerbench.errors import MaskError, Refused
from seerbench.rows.schema import TOLERANCE

# Prompts of fewer blocks are planned as the rule says, whatever that skips: they are cheap, and no number of whole
# blocks may be near the request. A measured row is refused there too (measure/arm.py).
MIN_BLOCKS = 4

# Bisections of a method's parameter for a requested sparsity. They resolve it to 0.00006 of its range.
BISECTIONS = 14


def require_budget(kept: float, sparsity: float, why: str, blocks: int = MIN_BLOCKS) -> None:
    """Raise Refused unless a share of kept blocks is within TOLERANCE of the requested sparsity.

    Args:
        kept: share of the causal blocks that a plan keeps.
        sparsity: requested share of causal blocks to skip.
        why: what keeps more or fewer blocks than requested, for the text of the refusal.
        blocks: number of key blocks; with fewer than MIN_BLOCKS nothing is refused.
    """
    if blocks >= MIN_BLOCKS and abs(1 - kept - sparsity) > TOLERANCE + 1e-9:
        raise Refused(
            f"skips {1 - kept:.1%} of the blocks where {sparsity:.1%} was requested: {why}; take a longer input, "
            "smaller blocks or another sparsity"
        )


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


class RowCounts(NamedTuple):
    """How many blocks each row keeps by the top-k rule.

    k: of every row, or all blocks of a row that sees fewer. longer: number of rows, the last ones before the dense
    rows, that keep one block more. kept: share of the causal blocks that all rows keep together.
    """

    k: int
    longer: int
    kept: float


@functools.cache
def top_k_rows(blocks: int, sparsity: float, last_rows_dense: int = 0, height: int = 1) -> RowCounts:
    """Return how many blocks the rows keep at a requested sparsity.

    The rule is the paper's (`top_k_count`). With few blocks, rounding its k down can miss the request by several
    points (52.3% for 50% of 32 blocks). Where it misses by more than TOLERANCE, and where rows at the end are
    dense, the budget is (1 - sparsity) of the causal blocks instead: all other rows keep the largest k that fits
    into it, and the last of them one block more until it is used up.

    Args:
        blocks: n, the number of key blocks.
        sparsity: share of the causal blocks to skip, in [0, 1).
        last_rows_dense: number of rows at the end that keep every block.
        height: key blocks that a query block covers.

    Raises:
        ValueError: the sparsity is outside [0, 1).
        Refused: a row keeps at least one block and a dense row all of them, which exceeds the budget.
    """
    if last_rows_dense < 0:
        raise MaskError(f"the number of dense rows is at least 0, not {last_rows_dense}")
    k = top_k_count(blocks, sparsity)
    visible = [min((row + 1) * height, blocks) for row in range(-(-blocks // height))]
    rest, dense = visible, 0
    if last_rows_dense:
        rest, dense = visible[:-last_rows_dense], sum(visible[-last_rows_dense:])

    def cost(k: int) -> int:
        return sum(min(k, seen) for seen in rest)

    longer = 0
    if last_rows_dense or abs(cost(k) / sum(visible) - (1 - sparsity)) > TOLERANCE:
        budget = round((1 - sparsity) * sum(visible)) - dense
        low, high = 1, blocks  # the largest k whose cost is at most the budget, by bisection
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if cost(middle) <= budget else (low, middle - 1)
        k = low
        longer = min(max(0, budget - cost(k)), sum(seen > k for seen in rest))
    kept = (cost(k) + longer + dense) / sum(visible)
    always = "every row keeps a block" + (
        f", and the last {last_rows_dense} rows keep all of theirs" if last_rows_dense else ""
    )
    require_budget(kept, sparsity, f"{always}, of {blocks} blocks", blocks)
    return RowCounts(k, longer, kept)


def blocks_per_row(
    blocks: int,
    sparsity: float,
    last_rows_dense: int = 0,
    height: int = 1,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return how many blocks each row keeps, int64 [nq] on a device; a row that sees fewer keeps them all.

    The other arguments are those of `top_k_rows`, which may raise Refused.
    """
    k, longer, _ = top_k_rows(blocks, sparsity, last_rows_dense, height)
    row = torch.arange(-(-blocks // height), device=device)
    end = len(row) - last_rows_dense
    return torch.where(row >= end, blocks, k + (row >= end - longer).long())


def top_k_density(blocks: int, sparsity: float, last_rows_dense: int = 0) -> float:
    """Return the share of the causal blocks that the top-k rule keeps: the budget of every other method.

    The arguments are those of `top_k_rows`, which may raise Refused.
    """
    return top_k_rows(blocks, sparsity, last_rows_dense).kept


def keep_top_k(scores: Tensor, sparsity: float, last_rows_dense: int = 0, height: int = 1) -> Tensor:
    """Flag the best blocks of each row of scores [B, Hq, nq, nk], bool of that shape.

    Args:
        scores: -inf where a block is not visible; such a block may be flagged in a row with fewer than k others.
            NaN ranks as -inf does.
        sparsity: decides how many blocks each row keeps (`top_k_rows`).
        last_rows_dense: number of rows at the end in which every block is flagged.
        height: key blocks that a query block covers.

    Raises:
        Refused: the rows cannot keep as few blocks as requested.
    """
    columns = scores.shape[-1]
    wanted = blocks_per_row(columns, sparsity, last_rows_dense, height, scores.device)[:, None]
    order = scores.masked_fill(scores.isnan(), -math.inf).sort(dim=-1, descending=True, stable=True).indices
    best = (torch.arange(columns, device=scores.device) < wanted).expand_as(scores)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, best)


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


def nearest_by_bisection(
    density_at: Callable[[float], float], budget: float, low: float, high: float
) -> tuple[float, float]:
    """Return the parameter whose density is the nearest to a budget, and that density.

    Args:
        density_at: share of the causal blocks that a method keeps at a parameter; it does not fall with it.
        budget: wanted density.
        low: lower end of the parameter's range.
        high: upper end.
    """
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if density_at(middle) <= budget else (low, middle)
    found = [(end, density_at(end)) for end in (low, high)]
    return min(found, key=lambda pair: abs(pair[1] - budget))


def keep_budget(cost: Tensor, sparsity: float, last_rows_dense: int = 0, diagonal: bool = True) -> Tensor:
    """Flag the blocks of lowest cost, in all heads together as many as the budget, bool [B, Hq, n, n].

    The diagonal, dense rows and blocks of cost -inf are always kept and paid from the budget. Of blocks of equal
    cost the first ones are kept, in the order of heads, rows and columns.

    Args:
        cost: fp32 [B, Hq, n, n]; low cost is kept.
        sparsity: decides the budget (`top_k_density`).
        last_rows_dense: number of rows at the end in which every block is flagged.
        diagonal: whether the diagonal is always kept; without it, `cost` must keep a block of each row.

    Raises:
        Refused: blocks that are always kept exceed the budget by more than TOLERANCE.
    """
    n, (in_triangle, budget) = cost.shape[-1], _costs_and_budget(cost, sparsity, last_rows_dense, diagonal)
    limit = in_triangle.kthvalue(budget, dim=1, keepdim=True).values
    tied = in_triangle == limit
    room = budget - (in_triangle < limit).sum(1, keepdim=True)
    chosen = (in_triangle < limit) | (tied & ((tied.cumsum(1) <= room) | (limit == -math.inf)))
    kept = torch.zeros_like(cost, dtype=torch.bool)
    kept[:, :, causal_blocks(n, 1, 1, cost.device)] = chosen.unflatten(1, (cost.shape[1], -1))
    return kept


def budget_limit(cost: Tensor, sparsity: float, last_rows_dense: int = 0, diagonal: bool = True) -> Tensor:
    """Return a highest cost at which as many blocks are kept as by `keep_budget`, fp32 [B], or nearly as many.

    A limit keeps or skips blocks of equal cost together, whichever is nearer to the budget. The arguments are those
    of `keep_budget`.
    """
    in_triangle, budget = _costs_and_budget(cost, sparsity, last_rows_dense, diagonal)
    limit = in_triangle.kthvalue(budget, dim=1).values
    below = torch.nextafter(limit, torch.full_like(limit, -math.inf))
    excess, lack = ((in_triangle <= each[:, None]).sum(1).sub(budget).abs() for each in (limit, below))
    return torch.where(excess <= lack, limit, below)


def _costs_and_budget(cost: Tensor, sparsity: float, last_rows_dense: int, diagonal: bool) -> tuple[Tensor, int]:
    """Return the costs of the causal blocks, [B, Hq * n * (n + 1) / 2], and how many of them may be kept.

    Blocks that are always kept have the cost -inf. Raises Refused if they are too many.
    """
    n = cost.shape[-1]
    visible = causal_blocks(n, 1, 1, cost.device)
    cost = cost.masked_fill(_always_kept(cost, last_rows_dense, diagonal), -math.inf)
    in_triangle = cost[:, :, visible].flatten(1)
    budget = max(1, round(top_k_density(n, sparsity, last_rows_dense) * in_triangle.shape[1]))
    always = int((in_triangle == -math.inf).sum(1).max())
    if always > budget:
        require_budget(always / in_triangle.shape[1], sparsity, f"it always keeps these, at {n} blocks", n)
    return in_triangle, budget


def _always_kept(cost: Tensor, last_rows_dense: int, diagonal: bool) -> Tensor:
    """Return flags of the diagonal, if it is always kept, and of the dense rows, bool [n, n]."""
    n = cost.shape[-1]
    flags = torch.eye(n, dtype=torch.bool, device=cost.device) & diagonal
    flags[max(0, n - last_rows_dense) :] = True
    return flags


def select_top_k(
    scores: Tensor, sparsity: float, tokens: int, block: int, last_rows_dense: int = 0, block_q: int | None = None
) -> BlockMask:
    """Select the best blocks of each row.

    Args:
        scores: [B, Hq, nq, nk], -inf where a block is not visible.
        sparsity: decides how many (`top_k_rows`).
        tokens: N, the tokens that the rows and columns cover.
        block: tokens per key block.
        last_rows_dense: number of block rows at the end that keep every block.
        block_q: tokens per query block; by default `block`.
    """
    kept = keep_top_k(scores, sparsity, last_rows_dense, (block_q or block) // block)
    return BlockMask.from_dense(kept, tokens, block_q or block, block)


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


def select_budget(
    cost: Tensor, sparsity: float, tokens: int, block: int, last_rows_dense: int = 0, diagonal: bool = True
) -> BlockMask:
    """Select the blocks of lowest cost by one threshold for all heads (`keep_budget`).

    Args:
        cost: fp32 [B, Hq, n, n]; low cost is kept.
        sparsity: decides the budget (`top_k_density`).
        tokens: N, the tokens that the rows and columns cover.
        block: tokens per query block and per key block.
        last_rows_dense: number of block rows at the end that keep every block.
        diagonal: whether the diagonal is always kept.
    """
    return BlockMask.from_dense(keep_budget(cost, sparsity, last_rows_dense, diagonal), tokens, block, block)


def _with_dense_rows(kept: Tensor, last_rows: int) -> Tensor:
    if last_rows < 0:
        raise MaskError(f"the number of dense rows is at least 0, not {last_rows}")
    if last_rows:
        kept[..., -last_rows:, :] = True  # BlockMask.from_dense drops the blocks above the diagonal
    return kept
