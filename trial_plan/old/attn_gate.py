"""AttnGate's plan on a GPU: pool Q and K, score the blocks, write the chosen ones down as a BlockMask.

    pool    max, min and mean over each block of tokens, all three in one pass over the tensor
    project a linear layer a head and RoPE at the block's first token, fp32 until both are done
    score   Z[I, J] = <q_I, k_J> / sqrt(D) for J <= I, else -inf
    select  top-k, a threshold on softmax(Z), or a threshold relative to the row's best block,
            straight from scores to int32 lists: no sort, no n x n mask and no scatter in between

Paper   SeerAttention (arXiv:2410.13276), sections 3.1 and 3.2; the relative threshold is FlashPrefill's
        rule (arXiv:2603.06199).
Oracle  seerbench.gate in plain torch: pool_blocks, AttnGate.forward, select_top_k, select_threshold.
        Ties go to the lower index there and here, so that the lists are equal entry for entry.

top-k without a sort: a row finds its k-th largest between its smallest and its largest score, which close in
by one count of the row at a time: how many are at least so large? It stops when exactly k are. The next score
to ask for halves the range, or is where k would fall if the scores in the range were even; where no float lies
between, or one is infinite, it halves the bits: a float's, with the sign folded in, order like unsigned integers.
The row sits in registers all the while.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from seerbench.attention import BlockMask, block_count

# Rows of up to this many blocks fit a program's registers (2M tokens of 64-token blocks).
MOST_BLOCKS = 32768


def pool_blocks(x: Tensor, block: int, operators: Sequence[str] = ("max", "min", "avg")) -> dict[str, Tensor]:
    """x [B, H, N, D] -> each of `operators`, [B, H, n, D] in x's dtype; the tail over its real tokens."""
    return dict(zip(operators, pool_side_by_side(x, block, operators).chunk(len(operators), -1), strict=True))


def pool_side_by_side(x: Tensor, block: int, operators: Sequence[str]) -> Tensor:
    """The same in one tensor, [B, H, n, D * operators]: what a gate's linear layer reads."""
    batch, heads, n, head_dim = x.shape
    x = x if x.stride(-1) == 1 else x.contiguous()
    blocks = block_count(n, block)
    pooled = x.new_empty(batch, heads, blocks, len(operators), head_dim)
    pools = dict(zip(operators, pooled.unbind(3), strict=True))
    _pool[(blocks, heads, batch)](
        x, *(pools.get(name, x) for name in ("max", "min", "avg")), *x.stride()[:3], n,
        HEAD_DIM=head_dim, BLOCK=block, WIDTH=len(operators) * head_dim,
        MAX="max" in pools, MIN="min" in pools, AVG="avg" in pools, num_warps=1,
    )  # fmt: skip
    return pooled.flatten(3)


def project(x: Tensor, weight: Tensor | None, tables: tuple[Tensor, Tensor] | None) -> Tensor:
    """A gate's linear layer and its RoPE in one launch, fp32 inside, [B, H of the weight, n, D] in x's dtype.

    x [B, Hk, n, W]: pools side by side. weight [H, W, D] with H a multiple of Hk, or None (W = D then).
    tables: cos and sin [n, D], or None.
    """
    batch, kv_heads, n, width = x.shape
    heads, _, head_dim = weight.shape if weight is not None else (kv_heads, width, width)
    cos, sin = (t.contiguous() for t in tables) if tables is not None else (x, x)
    out = x.new_empty(batch, heads, n, head_dim)
    tile = 64
    _project[(block_count(n, tile), heads, batch)](
        x, weight.contiguous() if weight is not None else x, cos, sin, out, n, heads // kv_heads,
        WIDTH=width, HEAD_DIM=head_dim, TILE=tile, LINEAR=weight is not None, ROPE=tables is not None, num_warps=4,
    )  # fmt: skip
    return out


def block_scores(q: Tensor, k: Tensor) -> Tensor:
    """q [B, Hq, n, D], k [B, Hq or Hk, n, D], one dtype -> fp32 scores [B, Hq, n, n], -inf above the diagonal."""
    batch, heads, n, head_dim = q.shape
    q, k = q.contiguous(), k.contiguous()
    scores = torch.empty(batch, heads, n, n, dtype=torch.float32, device=q.device)
    tile = 64
    tiles = block_count(n, tile)
    _score[(tiles, tiles, batch * heads)](
        q, k, scores, n, heads // k.shape[1], head_dim**-0.5, HEAD_DIM=head_dim, TILE=tile, num_warps=4
    )
    return scores


def select_top_k(scores: Tensor, k: int, tokens: int, block: int, last_rows_dense: int = 0) -> BlockMask:
    """The k best blocks of each row (all, where a row sees fewer); ties go to the lower index."""
    batch, heads, n, _ = scores.shape
    width = n if last_rows_dense else min(k, n)
    counts = torch.empty(batch, heads, n, dtype=torch.int32, device=scores.device)
    indices = torch.zeros(batch, heads, n, width, dtype=torch.int32, device=scores.device)
    for first, last in _rows_by_length(n):
        _select_top_k[(last - first, heads * batch)](
            scores.contiguous(), counts, indices, n, k, width, first, last_rows_dense,
            COLUMNS=_columns(last), num_warps=max(2, _columns(last) // 1024),
        )  # fmt: skip
    return BlockMask(counts, indices, tokens, block, block)


def _rows_by_length(n: int) -> list[tuple[int, int]]:
    """[first, last) of rows that one power of two of columns covers: the short half costs less than the long."""
    whole = triton.next_power_of_2(n)
    ends = [end for end in (whole // 4, whole // 2) if 64 <= end < n]
    return list(pairwise([0, *ends, n]))


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


@triton.jit(do_not_specialize=["n"])
def _pool(
    x_ptr, max_ptr, min_ptr, avg_ptr, x_b, x_h, x_n, n,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
    MAX: tl.constexpr, MIN: tl.constexpr, AVG: tl.constexpr,
):  # fmt: skip
    i, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    # One warp a block, 8 rows at a time: the reduction over rows is then elementwise until the very end.
    ROWS: tl.constexpr = 8
    local = tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD_DIM)
    base = x_ptr + batch.to(tl.int64) * x_b + head.to(tl.int64) * x_h + (i * BLOCK).to(tl.int64) * x_n
    most = tl.full([ROWS, HEAD_DIM], -float("inf"), tl.float32)
    least = tl.full([ROWS, HEAD_DIM], float("inf"), tl.float32)
    total = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    for start in tl.static_range(0, BLOCK, ROWS):
        rows = start + local
        real = (i * BLOCK + rows < n)[:, None]
        x = tl.load(base + rows[:, None] * x_n + dims[None, :], mask=real, other=0.0).to(tl.float32)
        if MAX:
            most = tl.maximum(most, tl.where(real, x, -float("inf")))
        if MIN:
            least = tl.minimum(least, tl.where(real, x, float("inf")))
        if AVG:
            total += x
    blocks = tl.num_programs(0)
    out = ((batch * tl.num_programs(1) + head).to(tl.int64) * blocks + i) * WIDTH + dims
    kind = max_ptr.dtype.element_ty
    if MAX:
        tl.store(max_ptr + out, tl.max(most, 0).to(kind))
    if MIN:
        tl.store(min_ptr + out, tl.min(least, 0).to(kind))
    if AVG:
        count = tl.minimum(n - i * BLOCK, BLOCK).to(tl.float32)
        tl.store(avg_ptr + out, (tl.sum(total, 0) / count).to(kind))


@triton.jit(do_not_specialize=["n", "group"])
def _project(
    x_ptr, w_ptr, cos_ptr, sin_ptr, out_ptr, n, group,
    WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr, TILE: tl.constexpr, LINEAR: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    i, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(1)
    HALF: tl.constexpr = HEAD_DIM // 2
    rows = i * TILE + tl.arange(0, TILE)
    real = (rows < n)[:, None]
    left = tl.arange(0, HALF)[None, :]  # RoPE turns a dimension of the left half with its twin on the right
    x_rows = x_ptr + ((batch * (heads // group) + head // group).to(tl.int64) * n + rows[:, None]) * WIDTH
    if LINEAR:
        a = tl.zeros([TILE, HALF], tl.float32)
        b = tl.zeros([TILE, HALF], tl.float32)
        for start in tl.static_range(0, WIDTH, HEAD_DIM):
            inputs = start + tl.arange(0, HEAD_DIM)
            x = tl.load(x_rows + inputs[None, :], mask=real, other=0.0)
            w = w_ptr + (head * WIDTH + inputs[:, None]) * HEAD_DIM + left
            a = tl.dot(x, tl.load(w).to(x.dtype), a, input_precision="ieee")
            b = tl.dot(x, tl.load(w + HALF).to(x.dtype), b, input_precision="ieee")
    else:
        a = tl.load(x_rows + left, mask=real, other=0.0).to(tl.float32)
        b = tl.load(x_rows + left + HALF, mask=real, other=0.0).to(tl.float32)
    if ROPE:
        at = rows[:, None] * HEAD_DIM + left
        cos_a, cos_b = (tl.load(cos_ptr + at, mask=real), tl.load(cos_ptr + at + HALF, mask=real))
        sin_a, sin_b = (tl.load(sin_ptr + at, mask=real), tl.load(sin_ptr + at + HALF, mask=real))
        a, b = a * cos_a - b * sin_a, b * cos_b + a * sin_b
    out = out_ptr + ((batch * heads + head).to(tl.int64) * n + rows[:, None]) * HEAD_DIM + left
    tl.store(out, a.to(out_ptr.dtype.element_ty), mask=real)
    tl.store(out + HALF, b.to(out_ptr.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["n", "group"])
def _score(q_ptr, k_ptr, scores_ptr, n, group, scale, HEAD_DIM: tl.constexpr, TILE: tl.constexpr):
    i, j, row = tl.program_id(1), tl.program_id(0), tl.program_id(2).to(tl.int64)
    local = tl.arange(0, TILE)
    dims = tl.arange(0, HEAD_DIM)
    offs_m = i * TILE + local
    offs_n = j * TILE + local
    s = tl.full([TILE, TILE], -float("inf"), tl.float32)
    if j <= i:
        q_base = q_ptr + row * n * HEAD_DIM
        k_base = k_ptr + row // group * n * HEAD_DIM  # heads are a multiple of the group: right for any batch
        q = tl.load(q_base + offs_m[:, None] * HEAD_DIM + dims[None, :], mask=offs_m[:, None] < n, other=0.0)
        k = tl.load(k_base + offs_n[None, :] * HEAD_DIM + dims[:, None], mask=offs_n[None, :] < n, other=0.0)
        s = tl.dot(q, k, input_precision="ieee") * scale
        s = tl.where(offs_m[:, None] >= offs_n[None, :], s, -float("inf"))
    inside = (offs_m[:, None] < n) & (offs_n[None, :] < n)
    tl.store(scores_ptr + (row * n + offs_m[:, None]) * n + offs_n[None, :], s, mask=inside)


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
    """The columns where `kept`, ascending; the rest of the list is zero already."""
    place = tl.cumsum(kept.to(tl.int32), 0) - 1
    tl.store(list_ptr + place, columns, mask=kept)


@triton.jit(do_not_specialize=["n", "k", "width", "first", "dense_rows"])
def _select_top_k(scores_ptr, counts_ptr, indices_ptr, n, k, width, first, dense_rows, COLUMNS: tl.constexpr):
    i = first + tl.program_id(0)
    row = tl.program_id(1).to(tl.int64) * n + i
    columns = tl.arange(0, COLUMNS)
    seen = columns <= i
    s = tl.load(scores_ptr + row * n + columns, mask=seen, other=-float("inf"))
    want = tl.where(i >= n - dense_rows, i + 1, tl.minimum(k, i + 1))
    # The k-th largest is in [low, high), bounds as keys: `count` entries, at least `want`, are as large as low, and
    # `beyond`, fewer than `want`, as large as high.
    low = _key_of(tl.min(tl.where(seen, s, float("inf")), 0))
    high = _key_of(tl.max(s, 0)) + 1
    count = i + 1
    beyond = 0
    step = 0
    while (count != want) & (high - low > 1):
        least = _score_of(low)
        most = _score_of(high)
        guess = 0.5 * least + 0.5 * most
        # Once the range is small the scores in it are nearly even. Not for ever: ties would keep it from shrinking.
        if (step > 2) & (step < 12) & (step % 3 != 0):
            guess = least + (most - least) * ((count - want).to(tl.float32) / (count - beyond).to(tl.float32))
        middle = _key_of(guess)
        if (middle <= low) | (middle >= high):  # no float so near, or one of them is infinite
            middle = low + (high - low) // 2
        as_large = tl.sum((s >= _score_of(middle)).to(tl.int32), 0)
        if as_large >= want:
            low = middle
            count = as_large
        else:
            high = middle
            beyond = as_large
        step += 1
    low = _score_of(low)
    kept = seen & (s >= low)
    if count != want:  # ties at the k-th: the lower indices win
        larger = s > low
        tied = seen & (s == low)
        room = want - tl.sum(larger.to(tl.int32), 0)
        kept = larger | (tied & (tl.cumsum(tied.to(tl.int32), 0) <= room))
    tl.store(counts_ptr + row, want)
    _write_list(kept, columns, indices_ptr + row * width)


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
