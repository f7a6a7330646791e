"""Select blocks from scores, in a GPU kernel where one applies, else by the torch reference in core/top_k.py.

Methods call these functions, so that no method has to know which device it runs on. Kernels and references
select the same blocks, entry for entry.
"""

from __future__ import annotations

from torch import Tensor

from seerbench.core import top_k
from seerbench.core.block_mask import BlockMask, causal_blocks, check_flags
from seerbench.core.top_k import top_k_count
from seerbench.kernels.attn_gate import api as kernel
from seerbench.kernels.index_lists import ascending_lists


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
    """Select the best k blocks of each row; on a GPU the kernel takes square blocks.

    Args:
        scores: fp32 [B, Hq, nq, nk]. Visible scores are not -inf; scores above the diagonal are -inf on a CPU
            and for blocks that are not square, and are not read otherwise.
        sparsity: decides k (`core.top_k.top_k_count`).
        tokens: N, the tokens that the rows and columns cover.
        block: tokens per key block.
        last_rows_dense: number of block rows at the end that keep every block.
        block_q: tokens per query block; by default `block`.
    """
    if scores.is_cuda and block_q in (None, block):
        k = top_k_count(scores.shape[-1], sparsity)
        return kernel.select_top_k(scores, k, tokens, block, last_rows_dense)
    return mask_from_flags(top_k.keep_top_k(scores, sparsity, last_rows_dense), tokens, block_q or block, block)


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


def select_budget(cost: Tensor, sparsity: float, tokens: int, block: int) -> BlockMask:
    """Select the blocks of lowest cost by one threshold for all heads (`core.top_k.keep_budget`).

    Args:
        cost: fp32 [B, Hq, n, n]; low cost is kept, cost -inf and the diagonal always.
        sparsity: decides the budget (`core.top_k.top_k_density`).
        tokens: N, the tokens that the rows and columns cover.
        block: tokens per query block and per key block.
    """
    return mask_from_flags(top_k.keep_budget(cost, sparsity), tokens, block, block)
