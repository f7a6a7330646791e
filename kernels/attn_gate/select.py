"""Block selection for AttnGate: from scores to ascending int32 lists, by top-k or by a threshold on the softmax.

Oracle  seerbench.core.top_k in plain torch; ties go to the lower index there and here.

Top-k without a sort: for each row, find a threshold t with exactly k scores >= t. Guess t, count the scores >= t,
narrow the bracket. The row stays in registers. The first guess is the k-th largest of as many scores with a normal
distribution, whose mean and deviation are those of 64 scores of the row. Until the k-th largest score is known to
be between two guesses, the next guess follows that normal density. Afterwards it is the score that would be the
k-th largest if the scores inside the bracket were evenly spaced. If the guess falls outside the bracket (no float
is between, or a bound is infinite) or 20 steps were not enough, the bracket of keys is halved: the bits of a float,
with the sign folded in, order as integers do. `reference.search_top_k` is the same search in torch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seerbench.core.block_mask import BlockMask, block_count
from seerbench.errors import KernelError
from seerbench.kernels.attn_gate.reference import HIGHEST_KEY, LOWEST_KEY
from seerbench.kernels.attn_gate.score import SCORE_TILE
from seerbench.kernels.checks import check_on_gpu
from seerbench.kernels.primitives import vector_width

MAX_BLOCKS = 32768  # a program holds a row of scores in registers: 2M tokens in blocks of 64
COLUMNS_PER_WARP = 2048  # scores of a row that one warp holds, 64 per thread


def select_top_k(
    scores: Tensor, k: int, tokens: int, block: int, last_rows_dense: int = 0, longer: int = 0
) -> BlockMask:
    """Select the k best blocks of each row, or all in a row of fewer than k; ties go to the lower index.

    scores: fp32 [B, Hq, n, n], not read above the diagonal; tokens: N; block: tokens per block; last_rows_dense:
    block rows at the end that keep every block; longer: rows before these that keep k + 1. A score of NaN or -inf
    ranks last. Raises KernelError for scores of another shape, dtype or device, for more than MAX_BLOCKS blocks,
    and for k < 1.
    """
    batch, heads, n, columns = *scores.shape[:3], _columns(scores, tokens, block, last_rows_dense)
    if k < 1:
        raise KernelError(f"top-k keeps at least one block of each row, not {k}")
    width = n if last_rows_dense else min(k + (longer > 0), n)
    first_longer = n - last_rows_dense - longer
    counts = torch.empty(batch, heads, n, dtype=torch.int32, device=scores.device)
    indices = torch.empty(batch, heads, n, width, dtype=torch.int32, device=scores.device)  # filled by the kernel
    _select_top_k[(heads * batch, n)](
        scores.contiguous(), counts, indices, n, k, width, last_rows_dense, first_longer,
        COLUMNS=columns, TILE=SCORE_TILE, VECTOR=vector_width(n), num_warps=max(1, columns // COLUMNS_PER_WARP),
    )  # fmt: skip
    return BlockMask.unchecked(counts, indices, tokens, block, block)


def select_threshold(
    scores: Tensor, threshold: float, tokens: int, block: int, last_rows_dense: int = 0
) -> BlockMask:
    """Select the blocks whose softmax(scores) exceeds `threshold`; a row without any keeps its best block.

    The arguments are those of `select_top_k`. The first of two launches counts, the second fills lists as
    wide as the longest. Between them the host waits for the GPU once.
    """
    batch, heads, n, columns = *scores.shape[:3], _columns(scores, tokens, block, last_rows_dense)
    scores = scores.contiguous()
    counts = torch.empty(batch, heads, n, dtype=torch.int32, device=scores.device)
    grid = (n, heads * batch)
    sizes = {"COLUMNS": columns, "num_warps": 4}
    _select_threshold[grid](scores, counts, counts, n, threshold, 0, last_rows_dense, FILL=False, **sizes)
    width = max(1, int(counts.max()))
    indices = torch.zeros(batch, heads, n, width, dtype=torch.int32, device=scores.device)
    _select_threshold[grid](scores, counts, indices, n, threshold, width, last_rows_dense, FILL=True, **sizes)
    return BlockMask.unchecked(counts, indices, tokens, block, block)


def _columns(scores: Tensor, tokens: int, block: int, last_rows_dense: int) -> int:
    """Check the arguments of a selection; return the number of scores that a program holds, a power of two."""
    n = block_count(tokens, block)
    if scores.dtype != torch.float32 or scores.dim() != 4 or scores.shape[2:] != (n, n) or not scores.numel():
        raise KernelError(
            f"scores of blocks of {block} over {tokens} tokens are float32 [B, Hq, {n}, {n}], not {scores.dtype} "
            f"{list(scores.shape)}"
        )
    if n > MAX_BLOCKS:
        raise KernelError(f"selection keeps a row of scores in registers: at most {MAX_BLOCKS} blocks, not {n}")
    if last_rows_dense < 0:
        raise KernelError(f"the number of dense rows is at least 0, not {last_rows_dense}")
    check_on_gpu(scores)
    return triton.next_power_of_2(n)


LOWEST = tl.constexpr(LOWEST_KEY)
HIGHEST = tl.constexpr(HIGHEST_KEY)


@triton.jit
def _key_of(score):
    """Return uint32 keys in the order of fp32 scores: those of negative floats have all bits flipped."""
    bits = (score + 0.0).to(tl.uint32, bitcast=True)  # -0.0 is 0.0
    return tl.where(bits >> 31 != 0, ~bits, bits | 0x80000000)


@triton.jit
def _score_of(key):
    """Return the fp32 score of a key; the inverse of `_key_of`."""
    return tl.where(key >> 31 != 0, key ^ 0x80000000, ~key).to(tl.float32, bitcast=True)


@triton.jit
def _write_list(kept, columns, list_ptr):
    """Write the columns where `kept`, ascending. The rest of the list is not touched."""
    tl.store(list_ptr + (tl.cumsum(kept.to(tl.int32), 0) - 1), columns, mask=kept)


@triton.jit(do_not_specialize=["n", "k", "width", "dense_rows", "first_longer"])
def _select_top_k(
    scores_ptr, counts_ptr, indices_ptr, n, k, width, dense_rows, first_longer,
    COLUMNS: tl.constexpr, TILE: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    i = n - 1 - tl.program_id(1)  # the longest rows of all heads first
    row = tl.program_id(0).to(tl.int64) * n + i
    wanted = tl.where(i >= first_longer, k + 1, k)
    want = tl.where(i >= n - dense_rows, i + 1, tl.minimum(wanted, i + 1))
    tl.store(counts_ptr + row, want)
    list_ptr = indices_ptr + row * width
    if want == i + 1:  # the row keeps all its blocks: its scores need not be read
        columns = tl.arange(0, COLUMNS)
        tl.store(list_ptr + columns, tl.where(columns <= i, columns, 0), mask=columns < width)
    else:
        # A short row takes fewer registers: a quarter, half, or all of the columns.
        row_ptr = scores_ptr + tl.multiple_of(row * n, VECTOR)
        SHORT: tl.constexpr = COLUMNS // 4 if COLUMNS >= 256 else COLUMNS
        if i < SHORT:
            _top_k_of_row(row_ptr, list_ptr, i, want, n, SHORT, TILE, VECTOR)
        elif i < 2 * SHORT:
            _top_k_of_row(row_ptr, list_ptr, i, want, n, 2 * SHORT, TILE, VECTOR)
        else:
            _top_k_of_row(row_ptr, list_ptr, i, want, n, COLUMNS, TILE, VECTOR)
        if want < width:  # only where other rows are dense or longer
            columns = tl.arange(0, COLUMNS)
            tl.store(list_ptr + columns, 0, mask=(columns >= want) & (columns < width))


@triton.jit
def _top_k_of_row(row_ptr, list_ptr, i, want, n, COLUMNS: tl.constexpr, TILE: tl.constexpr, VECTOR: tl.constexpr):
    """List the `want` best of the i + 1 scores of a row, want <= i and i < COLUMNS."""
    columns = tl.arange(0, COLUMNS)
    # Whole vectors, to the end of the tile that the diagonal crosses; inside it, scores above the diagonal are
    # -inf.
    read = columns // VECTOR * VECTOR < tl.minimum((i // TILE + 1) * TILE, n)
    s = tl.load(row_ptr + columns, mask=read, other=-float("inf"))

    # The first guess. 64 scores of the row, evenly spaced, give the mean and deviation of a normal distribution.
    sample = tl.load(row_ptr + tl.arange(0, 64) * (i + 1) // 64)
    mean = tl.sum(sample, 0) / 64
    deviation = tl.sqrt(tl.maximum(tl.sum(sample * sample, 0) / 64 - mean * mean, 0.0))
    share = (want - 0.5) / (i + 1)
    # The normal quantile z of 1 - share, to 0.01: that of Tukey's lambda distribution with lambda = 0.14.
    z = 4.91 * (tl.exp2(0.14 * tl.log2(1.0 - share)) - tl.exp2(0.14 * tl.log2(share)))
    guess = mean + deviation * z
    # Distance between neighbouring scores at the guess: 1 / (density * (i + 1)), with exp(z^2 / 2) in base 2.
    spacing = deviation * tl.exp2(0.7213475 * z * z) * 2.5066 / (i + 1)

    # Invariant: the k-th largest score is in [low, high) (keys, k = want); count = #{s >= low} >= k and
    # beyond = #{s >= high} < k.
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
        # A sum of floats takes half the instructions of one of integers.
        above = tl.sum((s >= at).to(tl.float32), 0).to(tl.int32)
        if above >= want:
            low = middle
            count = above
        else:
            high = middle
            beyond = above
        step += 1
        if (low == LOWEST) | (high == HIGHEST):
            # No two guesses bracket the k-th score yet: step past the density's estimate, further each time.
            off = (above - want).to(tl.float32)
            guess = at + off * spacing * 1.25 + tl.where(off < 0, -reach, reach)
            reach = tl.where(step == 1, deviation * 0.8, reach * 4)
        else:
            low_score = _score_of(low)
            part = ((count - want).to(tl.float32) + 0.5) / (count - beyond).to(tl.float32)
            part = tl.where(step % 4 == 3, 0.5, part)  # many ties could keep the bracket from shrinking
            guess = low_score + (_score_of(high) - low_score) * part
    kth = _score_of(low)
    kept = s >= kth
    if count != want:  # ties at the k-th score: the lower indices win
        larger = s > kth
        # If fewer than `want` scores are numbers above -inf, the others, NaN and -inf, are tied for the rest.
        tied = tl.where(low == LOWEST, (columns <= i) & (larger == 0), s == kth)
        room = want - tl.sum(larger.to(tl.int32), 0)
        kept = larger | (tied & (tl.cumsum(tied.to(tl.int32), 0) <= room))
    _write_list(kept, columns, list_ptr)


@triton.jit(do_not_specialize=["n", "width", "dense_rows"])
def _select_threshold(
    scores_ptr, counts_ptr, indices_ptr, n, threshold, width, dense_rows,
    FILL: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64) * n + i
    columns = tl.arange(0, COLUMNS)
    seen = columns <= i
    s = tl.load(scores_ptr + row * n + columns, mask=seen, other=-float("inf"))
    s = tl.where(s == s, s, -float("inf"))  # NaN counts as -inf
    best = tl.max(s, 0)
    p = tl.exp(s - best)
    kept = (p / tl.sum(p, 0) > threshold) & seen
    first_best = tl.min(tl.where((s == best) & seen, columns, COLUMNS), 0)
    none = tl.max(kept.to(tl.int32), 0) == 0
    kept = tl.where(none, columns == first_best, kept)
    kept = tl.where(i >= n - dense_rows, seen, kept)
    if FILL:
        _write_list(kept, columns, indices_ptr + row * width)
    else:
        tl.store(counts_ptr + row, tl.sum(kept.to(tl.int32), 0))
