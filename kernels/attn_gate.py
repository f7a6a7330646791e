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

Four launches make a plan, since the host takes longer than the GPU for a short one: Q and K share a launch of
`_pool` and one of `_project`. The plan's scores stay unwritten above the diagonal, where `select` does not look.

top-k without a sort: a row looks for a score that exactly k are as large as, by counting how many are as large as a
guess. The first guess is where k would fall if the scores were normal, with mean and deviation from 64 of them;
until the k-th is known to lie between two guesses the next one follows that normal density, then k's place if the
scores between were even. Where no float lies between, or one is infinite, or it takes too long, the range of bits
is halved: a float's, with the sign folded in, order like integers. The row sits in registers all the while.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from seerbench.attention import BlockMask, block_count

# Rows of up to this many blocks fit a program's registers (2M tokens of 64-token blocks).
MOST_BLOCKS = 32768
# Chosen by measurement: docs/LOG.md.
SCORE_TILE = 64  # side of the tile of scores that a program computes; `select` reads to the end of the diagonal's
COLUMNS_PER_WARP = 2048  # scores of a row that one warp holds, 64 a lane


def pool_blocks(x: Tensor, block: int, operators: Sequence[str] = ("max", "min", "avg")) -> dict[str, Tensor]:
    """x [B, H, N, D] -> each of `operators`, [B, H, n, D] in x's dtype; the tail over its real tokens."""
    pooled = pool_side_by_side([(x, operators)], block)[0]
    return dict(zip(operators, pooled.chunk(len(operators), -1), strict=True))


def pool_side_by_side(tensors: Sequence[tuple[Tensor, Sequence[str]]], block: int) -> list[Tensor]:
    """One or two (x [B, H, N, D], operators) in one launch -> each in one tensor, [B, H, n, D * operators].

    That is what a gate's linear layer reads. The two may differ in heads, operators and strides only.
    """
    (batch, heads, n, head_dim), blocks = tensors[0][0].shape, block_count(tensors[0][0].shape[2], block)
    sources, pools, sizes, all_heads = [], [], {}, 0
    for at, (x, operators) in enumerate((tensors[0], tensors[-1]), 1):
        x = x if x.stride(-1) == 1 else x.contiguous()
        sources += [x, *x.stride()[:3]]
        if at <= len(tensors):
            pools.append(x.new_empty(batch, x.shape[1], blocks, len(operators) * head_dim))
            all_heads += x.shape[1]
        for name in ("max", "min", "avg"):
            sizes[f"{name.upper()}_{at}"] = operators.index(name) if name in operators else -1
        sizes[f"WIDTH_{at}"] = len(operators) * head_dim
    _pool[(blocks, all_heads, batch)](
        *sources, pools[0], pools[-1], n, heads, all_heads - heads,
        HEAD_DIM=head_dim, BLOCK=block, **sizes, num_warps=1,
    )  # fmt: skip
    return pools


def project(layers: Sequence[tuple[Tensor, Tensor | None]], tables: tuple[Tensor, Tensor] | None) -> list[Tensor]:
    """A gate's linear layers and RoPE in one launch, fp32 inside: each [B, H of its weight, n, D] in x's dtype.

    layers: one or two (x [B, Hk, n, W], weight [H, W, D]): pools side by side, and H a multiple of Hk; or weight
    None, and W = D then. Of two, both have one n and one D. tables: cos and sin [n, D], or None.
    """
    inputs, outs, sizes, all_heads = [], [], {}, 0
    for at, (x, weight) in enumerate((layers[0], layers[-1]), 1):
        batch, kv_heads, n, width = x.shape
        heads, _, head_dim = weight.shape if weight is not None else (kv_heads, width, width)
        inputs += [x.contiguous(), weight.contiguous() if weight is not None else x, heads // kv_heads]
        if at <= len(layers):
            outs.append(x.new_empty(batch, heads, n, head_dim))
            all_heads += heads
        sizes |= {f"WIDTH_{at}": width, f"LINEAR_{at}": weight is not None}
    cos, sin = (t.contiguous() for t in tables) if tables is not None else (x, x)
    first = outs[0].shape[1]
    _project[(block_count(n, 64), all_heads, batch)](
        *inputs, outs[0], outs[-1], cos, sin, n, first, all_heads - first,
        HEAD_DIM=head_dim, TILE=64, **sizes, ROPE=tables is not None, num_warps=4,
    )  # fmt: skip
    return outs


def block_scores(q: Tensor, k: Tensor, whole: bool = True) -> Tensor:
    """q [B, Hq, n, D], k [B, Hq or Hk, n, D], one dtype -> fp32 scores [B, Hq, n, n], -inf above the diagonal.

    whole=False: beyond the diagonal's tile (SCORE_TILE) a row is left as the allocator found it, half the bytes
    to write. Only the select functions here may read such scores.
    """
    batch, heads, n, head_dim = q.shape
    q, k = q.contiguous(), k.contiguous()
    scores = torch.empty(batch, heads, n, n, dtype=torch.float32, device=q.device)
    tiles = block_count(n, SCORE_TILE)
    # Half of the square: the first row of tiles goes with the last, and so on.
    grid = (tiles, tiles) if whole else (tiles + 1, (tiles + 1) // 2)
    _score[(*grid, batch * heads)](
        q, k, scores, n, tiles, heads // k.shape[1], head_dim**-0.5,
        HEAD_DIM=head_dim, TILE=SCORE_TILE, WHOLE=whole, VECTOR=_vector(n), num_warps=4,
    )  # fmt: skip
    return scores


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


def _vector(n: int) -> int:
    """Floats that one load of a row of n scores takes: a row starts at a multiple of that."""
    return 4 if n % 4 == 0 else 1


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


@triton.jit(do_not_specialize=["n", "heads_1", "heads_2"])
def _pool(
    x_1, b_1, h_1, n_1, x_2, b_2, h_2, n_2, out_1, out_2, n, heads_1, heads_2,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
    MAX_1: tl.constexpr, MIN_1: tl.constexpr, AVG_1: tl.constexpr, WIDTH_1: tl.constexpr,
    MAX_2: tl.constexpr, MIN_2: tl.constexpr, AVG_2: tl.constexpr, WIDTH_2: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    if head < heads_1:
        x_ptr = x_1 + batch * b_1 + head.to(tl.int64) * h_1
        out_row = (batch * heads_1 + head) * tl.num_programs(0)
        _pool_block(x_ptr, n_1, out_1, out_row, n, HEAD_DIM, BLOCK, MAX_1, MIN_1, AVG_1, WIDTH_1)
    else:
        head -= heads_1
        x_ptr = x_2 + batch * b_2 + head.to(tl.int64) * h_2
        out_row = (batch * heads_2 + head) * tl.num_programs(0)
        _pool_block(x_ptr, n_2, out_2, out_row, n, HEAD_DIM, BLOCK, MAX_2, MIN_2, AVG_2, WIDTH_2)


@triton.jit
def _pool_block(
    x_ptr, x_n, out_ptr, out_row, n, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
    MAX: tl.constexpr, MIN: tl.constexpr, AVG: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Block program_id(0) of one head; MAX, MIN and AVG say which place among the pools each has, -1: none."""
    i = tl.program_id(0)
    # 8 rows at a time: the reduction over rows is then elementwise until the very end.
    ROWS: tl.constexpr = 8
    local = tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD_DIM)
    base = x_ptr + (i * BLOCK).to(tl.int64) * x_n
    most = tl.full([ROWS, HEAD_DIM], -float("inf"), tl.float32)
    least = tl.full([ROWS, HEAD_DIM], float("inf"), tl.float32)
    total = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    for start in tl.static_range(0, BLOCK, ROWS):
        rows = start + local
        real = (i * BLOCK + rows < n)[:, None]
        x = tl.load(base + rows[:, None] * x_n + dims[None, :], mask=real, other=0.0).to(tl.float32)
        if MAX >= 0:
            most = tl.maximum(most, tl.where(real, x, -float("inf")))
        if MIN >= 0:
            least = tl.minimum(least, tl.where(real, x, float("inf")))
        if AVG >= 0:
            total += x
    out = out_ptr + (out_row + i) * WIDTH + dims
    kind = out_ptr.dtype.element_ty
    if MAX >= 0:
        tl.store(out + MAX * HEAD_DIM, tl.max(most, 0).to(kind))
    if MIN >= 0:
        tl.store(out + MIN * HEAD_DIM, tl.min(least, 0).to(kind))
    if AVG >= 0:
        count = tl.minimum(n - i * BLOCK, BLOCK).to(tl.float32)
        tl.store(out + AVG * HEAD_DIM, (tl.sum(total, 0) / count).to(kind))


@triton.jit(do_not_specialize=["group_1", "group_2", "n", "heads_1", "heads_2"])
def _project(
    x_1, w_1, group_1, x_2, w_2, group_2, out_1, out_2, cos_ptr, sin_ptr, n, heads_1, heads_2,
    HEAD_DIM: tl.constexpr, TILE: tl.constexpr, WIDTH_1: tl.constexpr, LINEAR_1: tl.constexpr,
    WIDTH_2: tl.constexpr, LINEAR_2: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    if head < heads_1:
        x_row, out_row = (batch * (heads_1 // group_1) + head // group_1) * n, (batch * heads_1 + head) * n
        _project_tile(
            x_1 + x_row * WIDTH_1, w_1 + head * WIDTH_1 * HEAD_DIM, cos_ptr, sin_ptr, out_1 + out_row * HEAD_DIM, n,
            WIDTH_1, HEAD_DIM, TILE, LINEAR_1, ROPE,
        )  # fmt: skip
    else:
        head -= heads_1
        x_row, out_row = (batch * (heads_2 // group_2) + head // group_2) * n, (batch * heads_2 + head) * n
        _project_tile(
            x_2 + x_row * WIDTH_2, w_2 + head * WIDTH_2 * HEAD_DIM, cos_ptr, sin_ptr, out_2 + out_row * HEAD_DIM, n,
            WIDTH_2, HEAD_DIM, TILE, LINEAR_2, ROPE,
        )  # fmt: skip


@triton.jit
def _project_tile(
    x_ptr, w_ptr, cos_ptr, sin_ptr, out_ptr, n,
    WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr, TILE: tl.constexpr, LINEAR: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Tile program_id(0) of one head."""
    HALF: tl.constexpr = HEAD_DIM // 2
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    real = (rows < n)[:, None]
    left = tl.arange(0, HALF)[None, :]  # RoPE turns a dimension of the left half with its twin on the right
    x_rows = x_ptr + rows[:, None] * WIDTH
    if LINEAR:
        a = tl.zeros([TILE, HALF], tl.float32)
        b = tl.zeros([TILE, HALF], tl.float32)
        for start in tl.static_range(0, WIDTH, HEAD_DIM):
            inputs = start + tl.arange(0, HEAD_DIM)
            x = tl.load(x_rows + inputs[None, :], mask=real, other=0.0)
            w = w_ptr + inputs[:, None] * HEAD_DIM + left
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
    out = out_ptr + rows[:, None] * HEAD_DIM + left
    tl.store(out, a.to(out_ptr.dtype.element_ty), mask=real)
    tl.store(out + HALF, b.to(out_ptr.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["n", "tiles", "group"])
def _score(
    q_ptr, k_ptr, scores_ptr, n, tiles, group, scale,
    HEAD_DIM: tl.constexpr, TILE: tl.constexpr, WHOLE: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    i, j, row = tl.program_id(1), tl.program_id(0), tl.program_id(2).to(tl.int64)
    if not WHOLE:  # rows i and tiles - 1 - i have tiles + 1 tiles together; an odd middle row comes twice
        second = j > i
        j = tl.where(second, j - i - 1, j)
        i = tl.where(second, tiles - 1 - i, i)
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
    inside = (offs_m[:, None] < n) & (offs_n // VECTOR * VECTOR < n)[None, :]
    at = tl.multiple_of((row * n + offs_m) * n, VECTOR)
    tl.store(scores_ptr + at[:, None] + offs_n[None, :], s, mask=inside)


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
