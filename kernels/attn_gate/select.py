"""select."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seerbench.core.block_mask import BlockMask
from seerbench.kernels.attn_gate.api import MOST_BLOCKS
from seerbench.kernels.attn_gate.score import SCORE_TILE
from seerbench.kernels.primitives import _vector

COLUMNS_PER_WARP = 2048  # scores of a row that one warp holds, 64 a lane


def select_top_k(scores: Tensor, k: int, tokens: int, block: int, last_rows_dense: int = 0) -> BlockMask:
    """The k best blocks of each row (all, where a row sees fewer); ties go to the lower index."""
    batch, heads, n, _ = scores.shape
    width = n if last_rows_dense else min(k, n)
    counts = torch.empty(batch, heads, n, dtype=torch.int32, device=scores.device)
    indices = torch.empty(batch, heads, n, width, dtype=torch.int32, device=scores.device)  # filled by the kernel
    columns = _columns(n)
    _select_top_k[(heads * batch, n)](
        scores.contiguous(), counts, indices, n, k, width, last_rows_dense,
        COLUMNS=columns, TILE=SCORE_TILE, VECTOR=_vector(n), num_warps=max(1, columns // COLUMNS_PER_WARP),
    )  # fmt: skip
    return BlockMask(counts, indices, tokens, block, block)


def select_threshold(
    scores: Tensor, threshold: float, tokens: int, block: int, last_rows_dense: int = 0
) -> BlockMask:
    """Blocks whose softmax(scores) exceeds `threshold`; a row that none does keeps its best one."""
    return _above(scores, threshold, tokens, block, last_rows_dense, relative=False)


def select_relative(scores: Tensor, share: float, tokens: int, block: int) -> BlockMask:
    """Blocks whose softmax(scores) is at least `share` of the row's largest: no sort and no sum."""
    return _above(scores, share, tokens, block, 0, relative=True)


def _above(
    scores: Tensor, threshold: float, tokens: int, block: int, last_rows_dense: int, relative: bool
) -> BlockMask:
    batch, heads, n, _ = scores.shape
    scores = scores.contiguous()
    counts = torch.empty(batch, heads, n, dtype=torch.int32, device=scores.device)
    # Rows keep what they keep: count first, then lists as wide as the longest (the one wait for the GPU).
    grid = (n, heads * batch)
    sizes = {"RELATIVE": relative, "COLUMNS": _columns(n), "num_warps": 4}
    _select_above[grid](scores, counts, counts, n, threshold, 0, last_rows_dense, FILL=False, **sizes)
    width = max(1, int(counts.max()))
    indices = torch.zeros(batch, heads, n, width, dtype=torch.int32, device=scores.device)
    _select_above[grid](scores, counts, indices, n, threshold, width, last_rows_dense, FILL=True, **sizes)
    return BlockMask(counts, indices, tokens, block, block)


def _columns(n: int) -> int:
    if n > MOST_BLOCKS:
        raise ValueError(f"selection keeps a row of scores in registers: at most {MOST_BLOCKS} blocks, not {n}")
    return triton.next_power_of_2(n)


@triton.jit
def _key_of(score):
    """fp32 -> uint32 in the same order: negative floats order backwards, so that all their bits are flipped."""
    bits = (score + 0.0).to(tl.uint32, bitcast=True)  # -0.0 is 0.0
    return tl.where(bits >> 31 != 0, ~bits, bits | 0x80000000)


@triton.jit
def _score_of(key):
    return tl.where(key >> 31 != 0, key ^ 0x80000000, ~key).to(tl.float32, bitcast=True)


@triton.jit
def _write_list(kept, columns, list_ptr):
    """The columns where `kept`, ascending. The rest of the list is not touched."""
    tl.store(list_ptr + (tl.cumsum(kept.to(tl.int32), 0) - 1), columns, mask=kept)


@triton.jit(do_not_specialize=["n", "k", "width", "dense_rows"])
def _select_top_k(
    scores_ptr, counts_ptr, indices_ptr, n, k, width, dense_rows,
    COLUMNS: tl.constexpr, TILE: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    i = n - 1 - tl.program_id(1)  # the longest rows of all heads first
    row = tl.program_id(0).to(tl.int64) * n + i
    want = tl.where(i >= n - dense_rows, i + 1, tl.minimum(k, i + 1))
    tl.store(counts_ptr + row, want)
    list_ptr = indices_ptr + row * width
    if want == i + 1:  # the whole row: its scores need not be read
        columns = tl.arange(0, COLUMNS)
        tl.store(list_ptr + columns, tl.where(columns <= i, columns, 0), mask=columns < width)
    else:
        # A row in no more registers than the power of two that covers it.
        row_ptr = scores_ptr + tl.multiple_of(row * n, VECTOR)
        SHORT: tl.constexpr = COLUMNS // 4 if COLUMNS >= 256 else COLUMNS
        if i < SHORT:
            _top_k_of_row(row_ptr, list_ptr, i, want, n, SHORT, TILE, VECTOR)
        elif i < 2 * SHORT:
            _top_k_of_row(row_ptr, list_ptr, i, want, n, 2 * SHORT, TILE, VECTOR)
        else:
            _top_k_of_row(row_ptr, list_ptr, i, want, n, COLUMNS, TILE, VECTOR)
        if want < width:  # few rows: none without dense ones
            columns = tl.arange(0, COLUMNS)
            tl.store(list_ptr + columns, 0, mask=(columns >= want) & (columns < width))


@triton.jit
def _top_k_of_row(row_ptr, list_ptr, i, want, n, COLUMNS: tl.constexpr, TILE: tl.constexpr, VECTOR: tl.constexpr):
    """List the `want` best, fewer than all i + 1, of a row of fewer than COLUMNS + 1 scores."""
    columns = tl.arange(0, COLUMNS)
    # Whole vectors, to the end of the diagonal's tile: -inf above the diagonal there.
    read = columns // VECTOR * VECTOR < tl.minimum((i // TILE + 1) * TILE, n)
    s = tl.load(row_ptr + columns, mask=read, other=-float("inf"))

    # 64 scores of the row, evenly spaced, for a normal distribution's quantile.
    sample = tl.load(row_ptr + tl.arange(0, 64) * (i + 1) // 64)
    mean = tl.sum(sample, 0) / 64
    deviation = tl.sqrt(tl.maximum(tl.sum(sample * sample, 0) / 64 - mean * mean, 0.0))
    share = (want - 0.5) / (i + 1)
    # Tukey's lambda distribution is close to the normal one: quantile z, off by 0.01.
    z = 4.91 * (tl.exp2(0.14 * tl.log2(1.0 - share)) - tl.exp2(0.14 * tl.log2(share)))
    guess = mean + deviation * z
    width_of_one = deviation * tl.exp2(0.7213475 * z * z) * 2.5066 / (i + 1)  # of one score, at the guess

    # The k-th largest is in [low, high), bounds as keys: `count` entries, at least `want`, are as large as low, and
    # `beyond`, fewer than `want`, as large as high. All are as large as the lowest finite number.
    LOWEST: tl.constexpr = 0x00800000
    HIGHEST: tl.constexpr = 0xFF800001  # past infinity
    low = tl.full([], LOWEST, tl.uint32)
    high = tl.full([], HIGHEST, tl.uint32)
    count = i + 1
    beyond = 0
    step = 0
    reach = deviation * 0.02
    while (count != want) & (high - low > 1):
        middle = _key_of(guess)
        if (middle <= low) | (middle >= high) | (step > 20):
            middle = low + (high - low) // 2
        at = _score_of(middle)
        as_large = tl.sum((s >= at).to(tl.float32), 0).to(tl.int32)  # a sum of floats is half the instructions
        if as_large >= want:
            low = middle
            count = as_large
        else:
            high = middle
            beyond = as_large
        step += 1
        if (low == LOWEST) | (high == HIGHEST):
            # Not between two guesses yet: past where the density puts it, and ever further.
            off = (as_large - want).to(tl.float32)
            guess = at + off * width_of_one * 1.25 + tl.where(off < 0, -reach, reach)
            reach = tl.where(step == 1, deviation * 0.8, reach * 4)
        else:
            least = _score_of(low)
            part = ((count - want).to(tl.float32) + 0.5) / (count - beyond).to(tl.float32)
            part = tl.where(step % 4 == 3, 0.5, part)  # ties would keep the range from shrinking
            guess = least + (_score_of(high) - least) * part
    least = _score_of(low)
    kept = s >= least
    if count != want:  # ties at the k-th: the lower indices win
        larger = s > least
        tied = s == least
        room = want - tl.sum(larger.to(tl.int32), 0)
        kept = larger | (tied & (tl.cumsum(tied.to(tl.int32), 0) <= room))
    _write_list(kept, columns, list_ptr)


@triton.jit(do_not_specialize=["n", "width", "dense_rows"])
def _select_above(
    scores_ptr, counts_ptr, indices_ptr, n, threshold, width, dense_rows,
    RELATIVE: tl.constexpr, FILL: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64) * n + i
    columns = tl.arange(0, COLUMNS)
    seen = columns <= i
    s = tl.load(scores_ptr + row * n + columns, mask=seen, other=-float("inf"))
    best = tl.max(s, 0)
    p = tl.exp(s - best)
    kept = (p >= threshold) if RELATIVE else (p / tl.sum(p, 0) > threshold)
    kept = kept & seen
    first_best = tl.min(tl.where(s == best, columns, COLUMNS), 0)
    none = tl.max(kept.to(tl.int32), 0) == 0
    kept = tl.where(none, columns == first_best, kept)
    kept = tl.where(i >= n - dense_rows, seen, kept)
    if FILL:
        _write_list(kept, columns, indices_ptr + row * width)
    else:
        tl.store(counts_ptr + row, tl.sum(kept.to(tl.int32), 0))
