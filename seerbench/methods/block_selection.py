"""Select blocks from scores, in a GPU kernel where one applies, else by the torch reference in core/top_k.py.

Methods call these functions, so that no method has to know which device it runs on. Kernels and references
select the same blocks, entry for entry.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seerbench.core import top_k
from seerbench.core.block_mask import BlockMask, causal_blocks, check_flags
from seerbench.core.top_k import top_k_rows
from seerbench.kernels.attn_gate import api as kernel
from seerbench.kernels.index_lists import ascending_lists
from seerbench.rows.schema import SPREADS


def mask_from_flags(kept: Tensor, tokens: int, block_q: int, block_k: int) -> BlockMask:
    """Return the BlockMask of flags, bool [B, Hq, nq, nk]; flags above the diagonal are dropped.

    On a GPU, a kernel writes the lists; `BlockMask.from_dense` would sort the flags there.
    Raises MaskError for flags of another dtype or shape.
    """
    if not kept.is_cuda:
        return BlockMask.from_dense(kept, tokens, block_q, block_k)
    check_flags(kept, tokens, block_q, block_k)
    kept = kept & causal_blocks(tokens, block_q, block_k, kept.device)
    counts, indices = ascending_lists(kept)
    return BlockMask.unchecked(counts, indices, tokens, block_q, block_k)


def select_top_k(
    scores: Tensor, sparsity: float, tokens: int, block: int, last_rows_dense: int = 0, block_q: int | None = None
) -> BlockMask:
    """Select the best blocks of each row; on a GPU the kernel takes square blocks.

    Args:
        scores: fp32 [B, Hq, nq, nk]. Visible scores are not -inf; scores above the diagonal are -inf on a CPU
            and for blocks that are not square, and are not read otherwise.
        sparsity: decides how many (`core.top_k.top_k_rows`, which may raise Refused).
        tokens: N, the tokens that the rows and columns cover.
        block: tokens per key block.
        last_rows_dense: number of block rows at the end that keep every block.
        block_q: tokens per query block; by default `block`.
    """
    if scores.is_cuda and block_q in (None, block):
        k, longer, _ = top_k_rows(scores.shape[-1], sparsity, last_rows_dense)
        return kernel.select_top_k(scores, k, tokens, block, last_rows_dense, longer)
    kept = top_k.keep_top_k(scores, sparsity, last_rows_dense, (block_q or block) // block)
    return mask_from_flags(kept, tokens, block_q or block, block)


def select_threshold(
    scores: Tensor, threshold: float, tokens: int, block: int, last_rows_dense: int = 0
) -> BlockMask:
    """Select the blocks whose softmax(scores) exceeds `threshold`; a row without any keeps its best block.

    Args:
        scores: fp32 [B, Hq, n, n]; above the diagonal -inf on a CPU, not read on a GPU.
        threshold: smallest share of a row's softmax, exclusive.
        tokens: N, the tokens that the rows and columns cover.
        block: tokens per query block and per key block.
        last_rows_dense: number of block rows at the end that keep every block.
    """
    if scores.is_cuda:
        return kernel.select_threshold(scores, threshold, tokens, block, last_rows_dense)
    return top_k.select_threshold(scores, threshold, tokens, block, last_rows_dense)


def select_budget(
    cost: Tensor, sparsity: float, tokens: int, block: int, last_rows_dense: int = 0, diagonal: bool = True
) -> BlockMask:
    """Select the blocks of lowest cost by one threshold for all heads (`core.top_k.keep_budget`).

    Args:
        cost: fp32 [B, Hq, n, n]; low cost is kept, cost -inf always.
        sparsity: decides the budget (`core.top_k.top_k_density`).
        tokens: N, the tokens that the rows and columns cover.
        block: tokens per query block and per key block.
        last_rows_dense: number of block rows at the end that keep every block.
        diagonal: whether the diagonal is always kept.

    Raises:
        Refused: the budget cannot be met.
    """
    return mask_from_flags(top_k.keep_budget(cost, sparsity, last_rows_dense, diagonal), tokens, block, block)


def select_in_layer(
    weights: Tensor, sparsity: float, tokens: int, block: int, last_rows_dense: int = 0, forced: bool = False
) -> BlockMask:
    """Select the blocks of largest weight by one threshold for all rows and heads of a layer.

    Each row keeps its best block at least. Rows and heads whose weights are spread out get more blocks than by the
    top-k rule, which gives each the same number.

    Args:
        weights: fp32 [B, Hq, n, n], of which each row is non-negative and has the sum 1; 0 above the diagonal.
        sparsity: decides the budget, which all rows and heads share.
        tokens: N, the tokens that the rows and columns cover.
        block: tokens per query block and per key block.
        last_rows_dense: number of block rows at the end that keep every block.
        forced: whether block 0 and the diagonal are kept for certain.
    """
    cost = (-weights).scatter(-1, weights.argmax(-1, keepdim=True), -torch.inf)
    if forced:
        cost[..., 0] = -torch.inf
    return select_budget(cost, sparsity, tokens, block, last_rows_dense, diagonal=forced)


def with_sink_and_diagonal(scores: Tensor) -> Tensor:
    """Return scores fp32 [B, Hq, n, n] in which block 0 and the diagonal rank first in each row.

    They exceed the best score of the row by one: the kernel's search takes no infinite scores at the upper end.
    """
    first = scores.amax(-1, keepdim=True) + 1
    scores = torch.cat([first, scores[..., 1:]], -1)
    scores.diagonal(dim1=-2, dim2=-1).copy_(first[..., 0])
    return scores


def selection_suffix(threshold: float | None, spread: str, forced: bool, square: bool = True) -> str:
    """Return what a method's name says of its way to select, such as "+layer+forced"; "" for the top-k rule.

    Args:
        threshold: of the softmax, in place of a requested sparsity.
        spread: "row" or "layer".
        forced: whether block 0 and the diagonal are kept for certain.
        square: whether the blocks have as many queries as keys.

    Raises:
        ValueError: the options do not go together, or `spread` is neither of the two.
    """
    if spread not in SPREADS:
        raise ValueError(f"a budget is spread by {' or '.join(SPREADS)}, not {spread!r}")
    if threshold is not None and (spread == "layer" or forced):
        raise ValueError("a threshold has no budget; give a sparsity with spread and forced")
    if not square and (spread == "layer" or forced):
        raise ValueError("spread and forced are for blocks with as many queries as keys")
    parts = {"+threshold": threshold is not None, "+layer": spread == "layer", "+forced": forced}
    return "".join(name for name, chosen in parts.items() if chosen)
