"""MInference's index conversion on a GPU: selected columns and diagonals -> tiles and gathered columns.

Oracle  `reference.scan` and `reference.tiles_of`, entry for entry.
Here    `_count_flags` scans the flags of a head once, with one program per row of flags. `_ranges` builds the
        ranges of one row of tiles per program: it steps from range to range by look-ups and never visits an
        unselected diagonal.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seerbench.errors import KernelError
from seerbench.kernels.vertical_slash.tile_mask import NO_DIAGONAL, TileMask


def scan(columns: Tensor, diagonals: Tensor, chunk: int = 4096) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tables of `reference.scan` without waiting for the GPU.

    Here selected_columns is N wide; entries past the last selected column are undefined. chunk: flags per step.
    """
    flags = torch.stack([columns, diagonals])
    tokens = flags.shape[-1]
    columns_before = torch.empty(*flags.shape[:-1], tokens + 1, dtype=torch.int32, device=flags.device)
    selected_columns = torch.zeros(flags.shape, dtype=torch.int32, device=flags.device)
    _count_flags[(flags[..., 0].numel(),)](
        flags, columns_before, selected_columns, tokens, CHUNK=chunk, num_warps=8
    )
    # The last of the diagonals up to d, or -1 in front of the first.
    with_none = torch.nn.functional.pad(selected_columns[1], (1, 0), value=-1)
    largest_diagonal = with_none.gather(-1, columns_before[1, ..., 1:].long())
    return largest_diagonal, columns_before[0], selected_columns[0]


def tiles_of(
    largest_diagonal: Tensor, columns_before: Tensor, selected_columns: Tensor, n: int, tokens: int, tile: int
) -> TileMask:
    """Return the mask of n rows from the tables of `scan`, in two launches.

    The first counts, the second fills lists as wide as the longest; between them the host waits for the GPU once.
    Raises KernelError if a head does not select diagonal 0.
    """
    batch, heads, _ = largest_diagonal.shape
    tiles, columns = torch.empty(2, batch, heads, n, dtype=torch.int32, device=largest_diagonal.device)
    sizes = (tokens, n, selected_columns.shape[-1])

    def launch(starts: Tensor, gathered: Tensor, fill: bool) -> None:
        _ranges[(n, heads * batch)](
            largest_diagonal, columns_before, selected_columns, tiles, columns, starts, gathered, *sizes,
            starts.shape[-1], gathered.shape[-1],
            TILE=tile, CHUNK=64, FILL=fill, num_warps=1,
        )  # fmt: skip

    launch(tiles, columns, False)
    sizes_and_check = torch.stack([tiles.max(), columns.max(), largest_diagonal[..., 0].min()])
    tile_width, column_width, first_diagonal = sizes_and_check.tolist()
    if first_diagonal < 0:
        raise KernelError(NO_DIAGONAL)
    starts = torch.zeros(batch, heads, n, tile_width, dtype=torch.int32, device=largest_diagonal.device)
    gathered = torch.zeros(batch, heads, n, max(1, column_width), dtype=torch.int32, device=largest_diagonal.device)
    launch(starts, gathered, True)
    return TileMask.unchecked(tiles, starts, columns, gathered, tokens, tile)


@triton.jit(do_not_specialize=["n"])
def _count_flags(flags_ptr, before_ptr, selected_ptr, n, CHUNK: tl.constexpr):
    """Scan one row of N flags: how many are set before each place, and the places where they are set, ascending."""
    row = tl.program_id(0).to(tl.int64)
    before_row = before_ptr + row * (n + 1)
    tl.store(before_row, 0)
    total = 0
    for start in range(0, n, CHUNK):
        at = start + tl.arange(0, CHUNK)
        flag = tl.load(flags_ptr + row * n + at, mask=at < n, other=0).to(tl.int32)
        count = total + tl.cumsum(flag, 0)
        tl.store(before_row + at + 1, count, mask=at < n)
        tl.store(selected_ptr + row * n + count - 1, at, mask=flag > 0)
        total += tl.sum(flag, 0)


@triton.jit(do_not_specialize=["n", "rows", "width", "tile_width", "column_width"])
def _ranges(
    largest_ptr, before_ptr, selected_ptr, tiles_ptr, columns_ptr, starts_ptr, gathered_ptr,
    n, rows, width, tile_width, column_width, TILE: tl.constexpr, CHUNK: tl.constexpr, FILL: tl.constexpr,
):  # fmt: skip
    """Build the ranges of row m = program_id(0) of one head, as `reference.tiles_of` does: count, or FILL lists."""
    m = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    row = head * rows + m
    end = (m + 1) * TILE
    local = tl.arange(0, CHUNK)
    range_end = -TILE
    tiles = 0
    columns = 0
    found = tl.load(largest_ptr + head * n + tl.minimum(end, n) - 1)
    while found >= 0:
        e = tl.maximum(end - found, TILE)
        start = tl.where(e > range_end + TILE, e - TILE, range_end)
        first = tl.load(before_ptr + head * (n + 1) + tl.minimum(tl.maximum(range_end, 0), n))
        last = tl.load(before_ptr + head * (n + 1) + tl.minimum(start, n))
        if FILL:
            tl.store(starts_ptr + row * tile_width + tiles, start)
            for at in range(first, last, CHUNK):
                taken = at + local < last
                column = tl.load(selected_ptr + head * width + at + local, mask=taken, other=0)
                tl.store(gathered_ptr + row * column_width + columns + at - first + local, column, mask=taken)
        columns += last - first
        tiles += 1
        range_end = start + TILE
        diagonal = end - range_end - 1
        found = tl.load(
            largest_ptr + head * n + tl.minimum(tl.maximum(diagonal, 0), n - 1), mask=diagonal >= 0, other=-1
        )
    if not FILL:
        tl.store(tiles_ptr + row, tiles)
        tl.store(columns_ptr + row, columns)
