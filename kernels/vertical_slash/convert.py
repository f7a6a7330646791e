"""convert."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seerbench.core.block_mask import block_count
from seerbench.kernels.vertical_slash.tile_mask import TileMask


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
