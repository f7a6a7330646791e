"""TileMask: which keys MInference's vertical-slash attention reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seerbench.core.block_mask import block_count, causal_blocks


@dataclass(frozen=True)
class TileMask:
    """Plan of the keys that each row of `tile` queries reads: tiles that start at any token, and single columns.

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


def _used(counts: Tensor, lists: Tensor) -> Tensor:
    return torch.arange(lists.shape[-1], device=lists.device) < counts[..., None]
