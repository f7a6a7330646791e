"""TileMask: which keys MInference's vertical-slash attention reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seerbench.core.block_mask import block_count, causal_blocks
from seerbench.errors import MaskError

NO_DIAGONAL = "diagonal 0 must be selected for every head: without it a gathered column may be unseen"
NEVER = 2**31 - 1  # a start after every column


@dataclass(frozen=True)
class TileMask:
    """Plan of the keys that each row of `tile` queries reads: tiles that start at any token, and single columns.

    The constructor checks every entry and waits for a GPU once; code whose lists are right by construction takes
    `unchecked`.

    tile_counts:   int32 [B, Hq, n], tile_starts int32 [B, Hq, n, width]: first tokens of tiles of `tile` keys,
                   ascending and disjoint; a tile may reach past the row (causality cuts it) or past N.
    column_counts: int32 [B, Hq, n], columns int32 [B, Hq, n, width']: tokens outside the tiles, ascending,
                   all before the row's first query. Past its count a list holds zeros.
    Every query sees a key.

    Raises MaskError where a shape, dtype, device or entry is not of this kind.
    """

    tile_counts: Tensor
    tile_starts: Tensor
    column_counts: Tensor
    columns: Tensor
    tokens: int
    tile: int = 64

    def __post_init__(self) -> None:
        self._check_form()
        self.check()

    @classmethod
    def unchecked(
        cls,
        tile_counts: Tensor,
        tile_starts: Tensor,
        column_counts: Tensor,
        columns: Tensor,
        tokens: int,
        tile: int = 64,
    ) -> TileMask:
        """Return a mask of lists that are right by construction: no entry is checked, so no GPU is waited for."""
        mask = cls.__new__(cls)
        # The class is frozen, so attributes cannot be set by name.
        mask.__dict__.update(
            tile_counts=tile_counts,
            tile_starts=tile_starts,
            column_counts=column_counts,
            columns=columns,
            tokens=tokens,
            tile=tile,
        )
        mask._check_form()
        return mask

    def _check_form(self) -> None:
        """Check sizes, dtypes, shapes and devices, none of which waits for a GPU."""
        if not all(isinstance(size, int) and size > 0 for size in (self.tokens, self.tile)):
            raise MaskError(f"tokens and tile are positive integers, not {self.tokens!r} and {self.tile!r}")
        rows = block_count(self.tokens, self.tile)
        shape = self.tile_counts.shape
        lists = (self.tile_counts, self.tile_starts, self.column_counts, self.columns)
        if any(x.dtype != torch.int32 or x.device != self.tile_counts.device for x in lists):
            raise MaskError("the four lists of a tile mask are int32, on one device")
        right = len(shape) == 3 and shape[-1] == rows and self.column_counts.shape == shape
        if not right or any(x.shape[:-1] != shape for x in (self.tile_starts, self.columns)):
            raise MaskError(
                f"a tile mask of {self.tokens} tokens has {rows} rows of {self.tile}: counts [B, Hq, {rows}] and "
                f"lists [B, Hq, {rows}, width], not {[list(x.shape) for x in lists]}"
            )

    def check(self) -> None:
        """Check every entry of the lists; if they are on a GPU, the host waits for it once.

        Raises:
            MaskError: an entry is not as the class requires. The text names the first such row.
        """
        starts, columns, tile = self.tile_starts, self.columns, self.tile
        first_query = torch.arange(self.tile_counts.shape[-1], device=starts.device) * tile
        tiles, single = _used(self.tile_counts, starts), _used(self.column_counts, columns)
        # The last tile that starts at or before each column; one entry more, so that there is a last one.
        ascending = torch.nn.functional.pad(starts.masked_fill(~tiles, NEVER), (0, 1), value=NEVER)
        before = torch.searchsorted(ascending.contiguous(), columns.contiguous(), right=True) - 1
        inside = (before >= 0) & (columns - ascending.gather(-1, before.clamp_min(0)) < tile)
        faults = {
            "a count below 0 or above the width of its list": _no_count(self.tile_counts, starts)
            | _no_count(self.column_counts, columns),
            "tiles that do not ascend or that overlap": (
                (starts[..., 1:] - starts[..., :-1] < tile) & tiles[..., 1:]
            ).any(-1),
            "a tile that starts before token 0 or after the row": (
                tiles & ((starts < 0) | (starts >= first_query[:, None] + tile))
            ).any(-1),
            "columns that do not ascend, or one listed twice": (
                (columns[..., 1:] <= columns[..., :-1]) & single[..., 1:]
            ).any(-1),
            "a column before token 0 or not before the row's first query": (
                single & ((columns < 0) | (columns >= first_query[:, None]))
            ).any(-1),
            "a column inside a tile": (single & inside).any(-1),
            "an entry other than 0 beyond its count": (~tiles & (starts != 0)).any(-1)
            | (~single & (columns != 0)).any(-1),
            "a query that sees no key": ~(tiles & (starts <= first_query[:, None])).any(-1) & ~single.any(-1),
        }
        found = torch.stack([rows.any() for rows in faults.values()]).tolist()
        for (fault, rows), present in zip(faults.items(), found, strict=True):
            if present:
                batch, head, row = rows.nonzero()[0].tolist()
                raise MaskError(f"a tile mask has {fault}: batch entry {batch}, head {head}, row {row}")

    def area(self) -> Tensor:
        """Return the number of tiles that a kernel executes, [B, Hq]. Columns are gathered into whole tiles."""
        gathered = (self.column_counts + self.tile - 1) // self.tile
        return (self.tile_counts + gathered).sum(-1, dtype=torch.int64)

    def head_density(self) -> Tensor:
        """Return the number of executed tiles divided by that of causal tiles, float64 [B, Hq]."""
        n = block_count(self.tokens, self.tile)
        return self.area().double() / (n * (n + 1) // 2)

    def density(self) -> float:
        """Return the mean of `head_density`. Unaligned tiles that overlap the diagonal may raise it above 1."""
        return float(self.head_density().mean())

    def token_density(self) -> float:
        """Return the share of the causal (query, key) pairs that is computed."""
        return float(self.to_token_mask().sum(dtype=torch.int64)) / (
            self.tile_counts[..., 0].numel() * self.tokens * (self.tokens + 1) / 2
        )

    def flops(self, head_dim: int) -> int:
        """Return the floating-point operations of the two matrix products over the executed tiles, whole batch.

        They are 4 * tile^2 * head_dim per executed tile.
        """
        return 4 * self.tile**2 * head_dim * int(self.area().sum())

    def to_dense(self) -> Tensor:
        """Return the causal blocks of `tile` keys of which any key is read, bool [B, Hq, n, n]."""
        n = self.tile_counts.shape[-1]
        keys = self.rows_of_keys()[..., : n * self.tile].unflatten(-1, (n, self.tile)).any(-1)
        return keys & causal_blocks(n, 1, 1, keys.device)

    def to_token_mask(self) -> Tensor:
        """Return the pairs of query and key that are computed, causality included, bool [B, Hq, N, N]."""
        rows = self.rows_of_keys()[..., : self.tokens].repeat_interleave(self.tile, -2)[..., : self.tokens, :]
        return rows & torch.ones(self.tokens, self.tokens, dtype=torch.bool, device=rows.device).tril()

    def rows_of_keys(self) -> Tensor:
        """Return the keys that each row of queries reads, before causality, bool [B, Hq, n, n * tile + tile]."""
        n, device = self.tile_counts.shape[-1], self.tile_starts.device
        spare = n * self.tile + self.tile  # an index past every key, for the unused entries of a list
        kept = torch.zeros(*self.tile_counts.shape, spare + self.tile + 1, dtype=torch.bool, device=device)
        starts = self.tile_starts.masked_fill(~_used(self.tile_counts, self.tile_starts), spare)
        inside = starts[..., None] + torch.arange(self.tile, device=device)
        kept.scatter_(-1, inside.flatten(-2).long(), True)
        columns = self.columns.masked_fill(~_used(self.column_counts, self.columns), spare)
        return kept.scatter_(-1, columns.long(), True)[..., :spare]


def _no_count(counts: Tensor, lists: Tensor) -> Tensor:
    return (counts < 0) | (counts > lists.shape[-1])


def _used(counts: Tensor, lists: Tensor) -> Tensor:
    return torch.arange(lists.shape[-1], device=lists.device) < counts[..., None]
