"""Attention over tiles at any token offset plus gathered columns: MInference's vertical-slash mask.

    O[i] = sum_{j seen by i} softmax_j(q_i . k_j / sqrt(D)) v_j,
    seen = (j lies in a tile of i's row of queries and j <= i) or j is one of that row's columns

Paper   MInference (arXiv:2407.02490), section 3 and algorithm 2.
Oracle  seerbench.attention.oracle with the plan's `to_token_mask`, float64.
Here    CPU: `_gathered`, row by row over the keys that are read, in plain torch.
        GPU: `_forward`, Triton. Tiles start at arbitrary tokens, so that a diagonal of width one costs one
        tile a row and not the two that it would touch on a grid of blocks.

What the GPU kernel does: one program owns a row of 64 queries of one head. It walks the row's tiles as
block_sparse_attention.py does (tiles ascend; only the last two can cross the diagonal and compare
positions), then its columns, 64 gathered keys at a time. Columns lie before the row's first query and need no
comparison. One online softmax runs through all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from seerbench.attention import Case, block_count, causal_blocks

LOG2_E = 1.4426950408889634
LOWEST = tl.constexpr(-1.0e30)  # finite: a row whose first tile is masked computes exp2(-inf - LOWEST) = 0


@dataclass(frozen=True)
class TileMask:
    """Which keys each row of `tile` queries reads: tiles that start at any token, and single columns.

    tile_counts:   int32 [B, Hq, n], tile_starts int32 [B, Hq, n, width]: first tokens of tiles of `tile` keys,
                   ascending and disjoint; a tile may reach past the row (causality cuts it) or past N.
    column_counts: int32 [B, Hq, n], columns int32 [B, Hq, n, width']: tokens outside the tiles, ascending,
                   all before the row's first query. Past its count a list holds zeros.
    """

    tile_counts: Tensor
    tile_starts: Tensor
    column_counts: Tensor
    columns: Tensor
    tokens: int
    tile: int = 64

    def area(self) -> Tensor:
        """Tiles that a kernel executes, [B, Hq]: columns are gathered into whole tiles."""
        gathered = (self.column_counts + self.tile - 1) // self.tile
        return (self.tile_counts + gathered).sum(-1, dtype=torch.int64)

    def head_density(self) -> Tensor:
        """Executed tiles over causal tiles, float64 [B, Hq]: what `density` averages."""
        n = block_count(self.tokens, self.tile)
        return self.area().double() / (n * (n + 1) // 2)

    def density(self) -> float:
        """Executed tiles over causal tiles. A little above 1 is possible: unaligned tiles overlap the diagonal."""
        return float(self.head_density().mean())

    def token_density(self) -> float:
        """(query, key) pairs that are computed over the causal pairs."""
        return float(self.to_token_mask().sum(dtype=torch.int64)) / (
            self.tile_counts[..., 0].numel() * self.tokens * (self.tokens + 1) / 2
        )

    def flops(self, head_dim: int) -> int:
        """4 * tile^2 * head_dim for each executed tile (two matrix products), whole batch."""
        return 4 * self.tile**2 * head_dim * int(self.area().sum())

    def to_dense(self) -> Tensor:
        """bool [B, Hq, n, n]: blocks of `tile` keys of which any is read, causal ones only."""
        n = self.tile_counts.shape[-1]
        keys = self.rows_of_keys()[..., : n * self.tile].unflatten(-1, (n, self.tile)).any(-1)
        return keys & causal_blocks(n, 1, 1, keys.device)

    def to_token_mask(self) -> Tensor:
        """bool [B, Hq, N, N]: the (query, key) pairs that are computed, causality included."""
        rows = self.rows_of_keys()[..., : self.tokens].repeat_interleave(self.tile, -2)[..., : self.tokens, :]
        return rows & torch.ones(self.tokens, self.tokens, dtype=torch.bool, device=rows.device).tril()

    def rows_of_keys(self) -> Tensor:
        """bool [B, Hq, n, n * tile + tile]: the keys that each row of queries reads, before causality."""
        n, device = self.tile_counts.shape[-1], self.tile_starts.device
        spare = n * self.tile + self.tile  # an index past every key, for the unused entries of a list
        kept = torch.zeros(*self.tile_counts.shape, spare + self.tile + 1, dtype=torch.bool, device=device)
        starts = self.tile_starts.masked_fill(~_used(self.tile_counts, self.tile_starts), spare)
        inside = starts[..., None] + torch.arange(self.tile, device=device)
        kept.scatter_(-1, inside.flatten(-2).long(), True)
        columns = self.columns.masked_fill(~_used(self.column_counts, self.columns), spare)
        return kept.scatter_(-1, columns.long(), True)[..., :spare]


def _used(counts: Tensor, lists: Tensor) -> Tensor:
    return torch.arange(lists.shape[-1], device=lists.device) < counts[..., None]


def vertical_slash_tiles(columns: Tensor, diagonals: Tensor, tile: int = 64) -> TileMask:
    """Selected columns and diagonals, bool [B, Hq, N] each -> the tiles and columns that cover them.

    The index conversion of MInference, entry for entry: for the row that ends before token E = tile * (m + 1),
    diagonal d touches the keys [e - tile, e), e = max(E - d, tile). Taken from the left, a key range is
    closed when the next e lies more than a tile behind its end, and else extended by whole tiles; columns that
    no range covers and that lie before the last range's end are gathered. Diagonal 0 must be selected: it
    makes every row's last range reach the diagonal, so that a gathered column precedes all its queries (on a GPU,
    which is not waited for, it is taken as selected).
    """
    tokens = columns.shape[-1]
    n = block_count(tokens, tile)
    if columns.is_cuda:
        return _convert_on_gpu(*_scan_on_gpu(columns, diagonals), n, tokens, tile)
    if not diagonals[..., 0].all():
        raise ValueError("diagonal 0 must be selected for every head: without it a gathered column may be unseen")
    return _convert(*_scan(columns, diagonals), n, tokens, tile)


def _scan(columns: Tensor, diagonals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the conversion looks up, int32, from the flags [B, Hq, N].

    before [B, Hq, N]: the largest selected diagonal <= d, the next range to the right of a given end (-1: none);
    counted [B, Hq, N + 1]: selected columns before token j; order [B, Hq, width]: the selected columns, ascending.
    """
    places = torch.arange(columns.shape[-1], dtype=torch.int32)
    before = torch.where(diagonals, places, -1).cummax(-1).values.int()
    counted = torch.nn.functional.pad(columns.int().cumsum(-1, dtype=torch.int32), (1, 0))
    width = max(1, int(counted[..., -1].max()))
    order = torch.sort((~columns).to(torch.uint8), dim=-1, stable=True).indices[..., :width].int()
    return before, counted, order.contiguous()


def _scan_on_gpu(columns: Tensor, diagonals: Tensor, chunk: int = 4096) -> tuple[Tensor, Tensor, Tensor]:
    """The same without waiting for the GPU; `order` is N wide, undefined past the last column."""
    flags = torch.stack([columns, diagonals])
    tokens = flags.shape[-1]
    counted = torch.empty(*flags.shape[:-1], tokens + 1, dtype=torch.int32, device=flags.device)
    order = torch.zeros(flags.shape, dtype=torch.int32, device=flags.device)
    _count_flags[(flags[..., 0].numel(),)](flags, counted, order, tokens, CHUNK=chunk, num_warps=8)
    # Diagonal 0 is selected, so that each count is at least 1.
    before = order[1].gather(-1, (counted[1, ..., 1:] - 1).long())
    return before, counted[0], order[0]


def _convert(before: Tensor, counted: Tensor, order: Tensor, n: int, tokens: int, tile: int) -> TileMask:
    """All rows side by side, one tile of each a step."""
    shape = (*before.shape[:2], n)
    ends = ((torch.arange(n) + 1) * tile).expand(shape)
    high = torch.full(shape, -tile)
    starts, gaps = [], []
    while True:
        reach = ends - high - 1
        found = before.gather(-1, reach.clamp(0, tokens - 1).minimum(ends - 1)).long()
        live = (reach >= 0) & (found >= 0)
        if not live.any():
            break
        e = (ends - found).clamp_min(tile)
        start = torch.where(e > high + tile, e - tile, high)
        gaps.append(torch.where(live[..., None], torch.stack([high.clamp_min(0), start], -1), 0))
        starts.append(torch.where(live, start, -1))
        high = torch.where(live, start + tile, high)
    starts = torch.stack(starts, -1)
    tile_counts = (starts >= 0).sum(-1, dtype=torch.int32)
    # Columns in the gaps between ranges: a slice of the sorted columns for each gap.
    edges = counted[:, :, None].expand(*shape, -1).gather(-1, torch.stack(gaps, -2).flatten(-2).clamp_max(tokens))
    first, last = edges.unflatten(-1, (-1, 2)).unbind(-1)
    place = torch.arange(order.shape[-1])
    kept = ((place >= first[..., None]) & (place < last[..., None])).any(-2)
    column_counts = kept.sum(-1, dtype=torch.int32)
    width = max(1, int(column_counts.max()))
    which = torch.sort((~kept).to(torch.uint8), dim=-1, stable=True).indices[..., :width]
    columns = order[:, :, None].expand(*shape, -1).gather(-1, which)
    columns = torch.where(torch.arange(width) < column_counts[..., None], columns, 0)
    return TileMask(tile_counts, starts.clamp_min(0).int(), column_counts, columns.contiguous(), tokens, tile)


def _convert_on_gpu(before: Tensor, counted: Tensor, order: Tensor, n: int, tokens: int, tile: int) -> TileMask:
    """Count, then fill lists as wide as the longest (the one wait for the GPU)."""
    batch, heads, _ = before.shape
    tiles, columns = torch.empty(2, batch, heads, n, dtype=torch.int32, device=before.device)
    sizes = (tokens, n, order.shape[-1])

    def launch(starts: Tensor, gathered: Tensor, fill: bool) -> None:
        _ranges[(n, heads * batch)](
            before, counted, order, tiles, columns, starts, gathered, *sizes, starts.shape[-1], gathered.shape[-1],
            TILE=tile, CHUNK=64, FILL=fill, num_warps=1,
        )  # fmt: skip

    launch(tiles, columns, False)
    tile_width, column_width = torch.stack([tiles.max(), columns.max()]).tolist()
    starts = torch.zeros(batch, heads, n, tile_width, dtype=torch.int32, device=before.device)
    gathered = torch.zeros(batch, heads, n, max(1, column_width), dtype=torch.int32, device=before.device)
    launch(starts, gathered, True)
    return TileMask(tiles, starts, columns, gathered, tokens, tile)


@triton.jit(do_not_specialize=["n"])
def _count_flags(flags_ptr, counted_ptr, order_ptr, n, CHUNK: tl.constexpr):
    """One program a row of N flags, a chunk at a time: how many are set before each place, and where."""
    row = tl.program_id(0).to(tl.int64)
    counted_row = counted_ptr + row * (n + 1)
    tl.store(counted_row, 0)
    total = 0
    for start in range(0, n, CHUNK):
        at = start + tl.arange(0, CHUNK)
        flag = tl.load(flags_ptr + row * n + at, mask=at < n, other=0).to(tl.int32)
        count = total + tl.cumsum(flag, 0)
        tl.store(counted_row + at + 1, count, mask=at < n)
        tl.store(order_ptr + row * n + count - 1, at, mask=flag > 0)
        total += tl.sum(flag, 0)


@triton.jit(do_not_specialize=["n", "rows", "width", "tile_width", "column_width"])
def _ranges(
    before_ptr, counted_ptr, order_ptr, tiles_ptr, columns_ptr, starts_ptr, gathered_ptr,
    n, rows, width, tile_width, column_width, TILE: tl.constexpr, CHUNK: tl.constexpr, FILL: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    row = head * rows + m
    end = (m + 1) * TILE
    local = tl.arange(0, CHUNK)
    high = -TILE
    tiles = 0
    columns = 0
    found = tl.load(before_ptr + head * n + tl.minimum(end, n) - 1)
    while found >= 0:
        e = tl.maximum(end - found, TILE)
        start = tl.where(e > high + TILE, e - TILE, high)
        first = tl.load(counted_ptr + head * (n + 1) + tl.minimum(tl.maximum(high, 0), n))
        last = tl.load(counted_ptr + head * (n + 1) + tl.minimum(start, n))
        if FILL:
            tl.store(starts_ptr + row * tile_width + tiles, start)
            for at in range(first, last, CHUNK):
                taken = at + local < last
                column = tl.load(order_ptr + head * width + at + local, mask=taken, other=0)
                tl.store(gathered_ptr + row * column_width + columns + at - first + local, column, mask=taken)
        columns += last - first
        tiles += 1
        high = start + TILE
        reach = end - high - 1
        found = tl.load(before_ptr + head * n + tl.minimum(tl.maximum(reach, 0), n - 1), mask=reach >= 0, other=-1)
    if not FILL:
        tl.store(tiles_ptr + row, tiles)
        tl.store(columns_ptr + row, columns)


def implementation(case: Case) -> str:
    """The name of the kernel that runs `case`; it goes into the rows."""
    return "torch-gathered" if case.device == "cpu" else "triton-tiles"


def refuses(case: Case) -> str | None:
    """Why the kernel cannot run `case`, or None."""
    if case.q_heads % case.kv_heads:
        return f"{case.q_heads} query heads do not split over {case.kv_heads} key/value heads"
    if case.device == "cpu":
        return None
    if case.dtype not in ("float16", "bfloat16"):
        return f"the Triton kernel takes float16 and bfloat16, not {case.dtype}"
    if case.head_dim not in (16, 32, 64, 128):
        return f"the Triton kernel takes head_dim 16, 32, 64 or 128, not {case.head_dim}"
    if case.block_q not in (16, 32, 64):
        return f"the Triton kernel takes tiles of 16, 32 or 64, not {case.block_q}"
    return None


def tile_attention(q: Tensor, k: Tensor, v: Tensor, mask: TileMask) -> Tensor:
    """q [B, Hq, N, D], k and v [B, Hk, N, D] -> [B, Hq, N, D] in q's dtype. Forward only."""
    if not q.is_cuda:
        return _gathered(q, k, v, mask)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    o = torch.empty_like(q)
    launch(q, k, v, mask, o)
    return o


def _gathered(q: Tensor, k: Tensor, v: Tensor, mask: TileMask) -> Tensor:
    """Row by row: gather the keys that any head reads there, mask, softmax. Skips what no head reads."""
    _, heads, tokens, head_dim = q.shape
    group, tile = heads // k.shape[1], mask.tile
    q = q.unflatten(1, (-1, group))
    out = torch.empty_like(q)
    keys = mask.rows_of_keys()[..., :tokens].unflatten(1, (-1, group))
    for m in range(mask.tile_counts.shape[-1]):
        rows = torch.arange(m * tile, min((m + 1) * tile, tokens))
        wanted = keys[..., m, :]  # [B, Hk, group, N]
        index = wanted.any(0).any(0).any(0).nonzero()[:, 0]
        hidden = ~wanted[..., None, index] | (index > rows[:, None])
        scores = q[..., rows, :] @ k[:, :, None, index].mT * head_dim**-0.5
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out[..., rows, :] = weights @ v[:, :, None, index]
    return out.flatten(1, 2)


def launch(q: Tensor, k: Tensor, v: Tensor, mask: TileMask, o: Tensor) -> None:
    """Run `_forward` into o."""
    (batch, heads, n, head_dim), kv_heads = q.shape, k.shape[1]
    rows = mask.tile_counts.shape[-1]
    _forward[(rows * heads * batch,)](
        q, k, v, o, mask.tile_counts, mask.tile_starts, mask.column_counts, mask.columns,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *o.stride()[:3],
        n, heads, heads // kv_heads, rows, mask.tile_starts.shape[-1], mask.columns.shape[-1],
        head_dim**-0.5 * LOG2_E, HEAD_DIM=head_dim, TILE=mask.tile, num_warps=4, num_stages=3,
    )  # fmt: skip


# Unspecialised: otherwise a length or width divisible by 16, or equal to 1, would be another kernel.
@triton.jit(do_not_specialize=["n", "heads", "group", "rows", "tile_width", "column_width"])
def _forward(
    q_ptr, k_ptr, v_ptr, o_ptr, tile_counts_ptr, starts_ptr, column_counts_ptr, columns_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n,  # strides
    n, heads, group, rows, tile_width, column_width, scale,
    HEAD_DIM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # The query heads of a group side by side, rows from the longest to the shortest: see block_sparse_attention.
    pid = tl.program_id(0)
    kv, rest = pid // (group * rows), pid % (group * rows)
    i = rows - 1 - rest // group
    kv_heads = heads // group
    batch, head = kv // kv_heads, (kv % kv_heads) * group + rest % group

    local = tl.arange(0, TILE)
    dims = tl.arange(0, HEAD_DIM)
    offs_m = i * TILE + local
    q_base = q_ptr + batch.to(tl.int64) * q_b + head.to(tl.int64) * q_h + (i * TILE).to(tl.int64) * q_n
    q = tl.load(q_base + local[:, None] * q_n + dims[None, :], mask=offs_m[:, None] < n, other=0.0)
    k_base = k_ptr + batch.to(tl.int64) * k_b + (head // group).to(tl.int64) * k_h
    v_base = v_ptr + batch.to(tl.int64) * v_b + (head // group).to(tl.int64) * v_h

    row = (batch * heads + head).to(tl.int64) * rows + i
    tiles = tl.load(tile_counts_ptr + row)
    starts = starts_ptr + row * tile_width
    crossing = 0  # disjoint tiles: at most two hold a key after the row's first query
    for back in tl.static_range(1, 3):
        start = tl.load(starts + tiles - back, mask=back <= tiles, other=-TILE)
        crossing += (start + TILE - 1 > i * TILE).to(tl.int32)

    m = tl.full([TILE], LOWEST, tl.float32)
    l = tl.zeros([TILE], tl.float32)  # noqa: E741
    acc = tl.zeros([TILE, HEAD_DIM], tl.float32)
    for t in range(tiles - crossing):
        at = tl.load(starts + t).to(tl.int64)
        k = tl.load(k_base + at * k_n + local[None, :] * k_n + dims[:, None])
        v = tl.load(v_base + at * v_n + local[:, None] * v_n + dims[None, :])
        s = tl.dot(q, k, input_precision="ieee")
        m, l, acc = _update(s, v, scale, m, l, acc)  # noqa: E741
    for t in range(tiles - crossing, tiles):
        at = tl.load(starts + t)
        offs_n = at + local
        at = at.to(tl.int64)
        k_ptrs = k_base + at * k_n + local[None, :] * k_n + dims[:, None]
        k = tl.load(k_ptrs, mask=offs_n[None, :] < n, other=0.0)
        v = tl.load(v_base + at * v_n + local[:, None] * v_n + dims[None, :], mask=offs_n[:, None] < n, other=0.0)
        s = tl.dot(q, k, input_precision="ieee")
        s = tl.where(offs_m[:, None] >= offs_n[None, :], s, -float("inf"))
        m, l, acc = _update(s, v, scale, m, l, acc)  # noqa: E741
    count = tl.load(column_counts_ptr + row)
    for first in range(0, count, TILE):
        real = first + local < count
        columns = tl.load(columns_ptr + row * column_width + first + local, mask=real, other=0).to(tl.int64)
        k = tl.load(k_base + columns[None, :] * k_n + dims[:, None])
        v = tl.load(v_base + columns[:, None] * v_n + dims[None, :])
        s = tl.dot(q, k, input_precision="ieee")
        s = tl.where(real[None, :], s, -float("inf"))
        m, l, acc = _update(s, v, scale, m, l, acc)  # noqa: E741

    o_base = o_ptr + batch.to(tl.int64) * o_b + head.to(tl.int64) * o_h + (i * TILE).to(tl.int64) * o_n
    out = (acc / l[:, None]).to(o_ptr.dtype.element_ty)
    tl.store(o_base + local[:, None] * o_n + dims[None, :], out, mask=offs_m[:, None] < n)


@triton.jit
def _update(s, v, scale, m, l, acc):  # noqa: E741
    """One step of the online softmax, base 2."""
    m_new = tl.maximum(m, tl.max(s, 1) * scale)
    p = tl.exp2(s * scale - m_new[:, None])
    shrink = tl.exp2(m - m_new)
    l = l * shrink + tl.sum(p, 1)  # noqa: E741
    return m_new, l, tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
