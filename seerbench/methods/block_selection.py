"""block_selection."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask, causal_blocks


def top_k_count(blocks: int, sparsity: float) -> int:
    """Blocks a row keeps, the same for all rows: k = max(1, floor((1 - sqrt(1 - nz)) n)), nz = 1 - sparsity.

    Rows shorter than k keep all they see, so the sparsity is an average over the causal triangle.
    """
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity is the share of blocks skipped, in [0, 1), not {sparsity}")
    # 1 - (1 - s) is not s in floating point; rounding keeps floor() from losing an exact integer.
    return max(1, math.floor(round((1.0 - math.sqrt(sparsity)) * blocks, 9)))


def top_k_density(blocks: int, sparsity: float) -> float:
    """Causal blocks that the rule really keeps: what the other methods get as their budget."""
    k = top_k_count(blocks, sparsity)
    return (k * blocks - k * (k - 1) / 2) / (blocks * (blocks + 1) / 2)


def select_top_k(
    scores: Tensor, sparsity: float, tokens: int, block: int, last_rows_dense: int = 0, block_q: int | None = None
) -> BlockMask:
    """fp32 scores [B, Hq, nq, nk] (-inf where not visible) -> the best k of each row; ties go to the lower index.

    block_q: query rows a block, where they are not `block` as well.
    """
    k = top_k_count(scores.shape[-1], sparsity)
    if scores.is_cuda and block_q in (None, block):
        from seerbench.kernels.attn_gate import select as attn_gate_select

        return attn_gate_select.select_top_k(scores, k, tokens, block, last_rows_dense)
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)
    return _mask(kept, tokens, block, last_rows_dense, block_q)


def select_threshold(
    scores: Tensor, threshold: float, tokens: int, block: int, last_rows_dense: int = 0
) -> BlockMask:
    """Blocks whose softmax(scores) exceeds `threshold` (v2's rule); a row that none does keeps its best one."""
    if scores.is_cuda:
        from seerbench.kernels.attn_gate import select as attn_gate_select

        return attn_gate_select.select_threshold(scores, threshold, tokens, block, last_rows_dense)
    kept = scores.softmax(-1) > threshold
    best = torch.zeros_like(kept).scatter_(-1, scores.argmax(-1, keepdim=True), True)
    kept |= best & ~kept.any(-1, keepdim=True)
    return _mask(kept, tokens, block, last_rows_dense)


def select_budget(cost: Tensor, sparsity: float, tokens: int, block: int) -> BlockMask:
    """Blocks by one threshold on fp32 cost [B, Hq, n, n] (low is kept), at most as many as top-k would.

    The diagonal and blocks of cost -inf are kept always, even over the budget. Blocks of one other cost stand or
    fall together: where they would pass the budget they fall, and the realised sparsity is above the requested.
    """
    diagonal = torch.eye(cost.shape[-1], dtype=torch.bool, device=cost.device)
    limit = budget_limit(cost, sparsity)[:, None, None, None]
    return BlockMask.from_dense((cost <= limit) | diagonal, tokens, block, block)


def budget_limit(cost: Tensor, sparsity: float) -> Tensor:
    """The threshold of `select_budget`, fp32 [B]: a block is kept if its cost is at most that."""
    n = cost.shape[-1]
    seen = causal_blocks(n, 1, 1, cost.device)
    cost = cost.masked_fill(torch.eye(n, dtype=torch.bool, device=cost.device), -math.inf)
    budget = max(1, round(top_k_density(n, sparsity) * int(seen.sum()) * cost.shape[1]))
    limit = cost[:, :, seen].flatten(1).kthvalue(budget, dim=1).values
    kept = ((cost <= limit[:, None, None, None]) & seen).flatten(1).sum(1)
    below = torch.nextafter(limit, torch.full_like(limit, -math.inf))
    return torch.where(kept <= budget, limit, below)


def _mask(kept: Tensor, tokens: int, block: int, last_rows_dense: int, block_q: int | None = None) -> BlockMask:
    if last_rows_dense:
        kept[..., -last_rows_dense:, :] = True  # from_dense drops what is above the diagonal
    return BlockMask.from_dense(kept, tokens, block_q or block, block)
