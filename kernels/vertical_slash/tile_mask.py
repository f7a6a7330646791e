"""TileMask: which keys MInference's vertical-slash attention reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seerbench.core.block_mask import block_count, causal_blocks


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
