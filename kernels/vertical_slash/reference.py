"""MInference's index conversion and attention over its tiles in plain torch, on any device.

Source: MInference (arXiv:2407.02490), algorithm 2, and upstream's conversion, which `tiles_of` equals entry for
entry.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seerbench.errors import KernelError
from seerbench.kernels.vertical_slash.tile_mask import NO_DIAGONAL, TileMask


def scan(columns: Tensor, diagonals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three int32 tables that `tiles_of` looks up, (largest_diagonal, columns_before, selected_columns).

    largest_diagonal [B, Hq, N]: the largest selected diagonal <= d, or -1. columns_before [B, Hq, N + 1]: how many
    selected columns precede token j. selected_columns [B, Hq, width]: the selected columns, ascending.
    """
    places = torch.arange(columns.shape[-1], dtype=torch.int32, device=columns.device)
    largest_diagonal = torch.where(diagonals, places, -1).cummax(-1).values.int()
    columns_before = torch.nn.functional.pad(columns.int().cumsum(-1, dtype=torch.int32), (1, 0))
    width = max(1, int(columns_before[..., -1].max()))
    selected_columns = torch.sort((~columns).to(torch.uint8), dim=-1, stable=True).indices[..., :width].int()
    return largest_diagonal, columns_before, selected_columns.contiguous()


def tiles_of(
    largest_diagonal: Tensor, columns_before: Tensor, selected_columns: Tensor, n: int, tokens: int, tile: int
) -> TileMask:
    """Return the mask of n rows from the tables of `scan`: all rows at once, one tile of each row per step.

    For the row that ends before token E = tile * (m + 1), diagonal d touches the keys [e - tile, e) with
    e = max(E - d, tile). Ranges of keys are built from the left. A range ends when the next e lies more than a tile
    behind its end, and is extended by whole tiles otherwise. Columns that no range covers and that precede the end
    of the last range are gathered. Raises KernelError if a head does not select diagonal 0.
    """
    if largest_diagonal[..., 0].min() < 0:
        raise KernelError(NO_DIAGONAL)
    device = largest_diagonal.device
    shape = (*largest_diagonal.shape[:2], n)
    ends = ((torch.arange(n, device=device) + 1) * tile).expand(shape)
    range_end = torch.full(shape, -tile, device=device)
    starts, gap_bounds = [], []
    while True:
        diagonal = ends - range_end - 1
        found = largest_diagonal.gather(-1, diagonal.clamp(0, tokens - 1).minimum(ends - 1)).long()
        live = (diagonal >= 0) & (found >= 0)
        if not live.any():
            break
        e = (ends - found).clamp_min(tile)
        start = torch.where(e > range_end + tile, e - tile, range_end)
        gap_bounds.append(torch.where(live[..., None], torch.stack([range_end.clamp_min(0), start], -1), 0))
        starts.append(torch.where(live, start, -1))
        range_end = torch.where(live, start + tile, range_end)
    starts = torch.stack(starts, -1)
    tile_counts = (starts >= 0).sum(-1, dtype=torch.int32)
    # Columns in the gap_bounds between ranges: a slice of the sorted columns for each gap.
    gap_counts = (
        columns_before[:, :, None]
        .expand(*shape, -1)
        .gather(-1, torch.stack(gap_bounds, -2).flatten(-2).clamp_max(tokens))
    )
    first, last = gap_counts.unflatten(-1, (-1, 2)).unbind(-1)
    place = torch.arange(selected_columns.shape[-1], device=device)
    kept = ((place >= first[..., None]) & (place < last[..., None])).any(-2)
    column_counts = kept.sum(-1, dtype=torch.int32)
    width = max(1, int(column_counts.max()))
    which = torch.sort((~kept).to(torch.uint8), dim=-1, stable=True).indices[..., :width]
    columns = selected_columns[:, :, None].expand(*shape, -1).gather(-1, which)
    columns = torch.where(torch.arange(width, device=device) < column_counts[..., None], columns, 0)
    return TileMask.unchecked(
        tile_counts, starts.clamp_min(0).int(), column_counts, columns.contiguous(), tokens, tile
    )


def tile_attention(q: Tensor, k: Tensor, v: Tensor, mask: TileMask) -> Tensor:
    """Return attention over the mask's keys, [B, Hq, N, D], for q [B, Hq, N, D], k and v [B, Hk, N, D].

    Row of tiles by row of tiles: gather the keys that any head reads there, mask, softmax. Keys that no head reads
    are skipped. Forward only.
    """
    _, heads, tokens, head_dim = q.shape
    group, tile = heads // k.shape[1], mask.tile
    q = q.unflatten(1, (-1, group))
    out = torch.empty_like(q)
    keys = mask.rows_of_keys()[..., :tokens].unflatten(1, (-1, group))
    for m in range(mask.tile_counts.shape[-1]):
        rows = torch.arange(m * tile, min((m + 1) * tile, tokens), device=q.device)
        wanted = keys[..., m, :]  # [B, Hk, group, N]
        index = wanted.any(0).any(0).any(0).nonzero()[:, 0]
        hidden = ~wanted[..., None, index] | (index > rows[:, None])
        scores = q[..., rows, :] @ k[:, :, None, index].mT * head_dim**-0.5
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out[..., rows, :] = weights @ v[:, :, None, index]
    return out.flatten(1, 2)
