"""Define CacheLists: the blocks of a cache of keys and values that one new token reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seerbench.errors import MaskError


@dataclass(frozen=True)
class CacheLists:
    """The key blocks that one new token per sequence reads, as one list per key/value head.

    All query heads of a group read the list of their key/value head. Block J of a sequence holds its tokens
    J * block, ..., J * block + block - 1, counted from its own first token, so that padding on the left moves no
    block. The last block may be partial.

    Attributes:
        counts: number of blocks in each list, int32 [B, Hk]. A list may have none; its output is 0.
        blocks: the blocks, int32 [B, Hk, width]. The first `counts` entries of a list differ from each other.
        first: place in the cache of each sequence's first token, int32 [B].
        end: place in the cache behind each sequence's last token, int32 [B].
        block: tokens per block.
    """

    counts: Tensor
    blocks: Tensor
    first: Tensor
    end: Tensor
    block: int

    @classmethod
    def from_flags(
        cls, kept: Tensor, first: Tensor, end: Tensor, block: int, width: int | None = None
    ) -> CacheLists:
        """Return the lists of the blocks that are flagged, ascending. It never waits for a GPU.

        Args:
            kept: bool [B, Hk, n].
            first, end, block: as the attributes.
            width: entries per list, at least the largest number of flags that are set; by default n.

        Raises:
            MaskError: `kept` has another dtype or shape.
        """
        if kept.dtype != torch.bool or kept.dim() != 3 or not kept.numel():
            raise MaskError(f"flags of a cache's blocks are bool [B, Hk, n], not {kept.dtype} {list(kept.shape)}")
        n = kept.shape[-1]
        # The largest of n, n - 1, ..., 1 among the set flags belong to the first columns.
        ranks = kept * torch.arange(n, 0, -1, dtype=torch.int32, device=kept.device)
        columns = n - ranks.topk(min(width or n, n)).values
        counts = kept.sum(-1, dtype=torch.int32)
        return cls(counts, columns.where(columns < n, 0), first, end, block)

    def to_tokens(self, room: int) -> Tensor:
        """Return which of `room` places in the cache are read, bool [B, Hk, room]."""
        blocks = -(-room // self.block)
        listed = torch.arange(self.blocks.shape[-1], device=self.blocks.device) < self.counts[..., None]
        flags = torch.zeros(*self.counts.shape, blocks + 1, dtype=torch.bool, device=self.blocks.device)
        flags = flags.scatter(-1, self.blocks.where(listed, blocks).long(), True)
        places = torch.arange(room, device=self.blocks.device)
        block = (places - self.first[:, None]).clamp(min=0) // self.block  # [B, room]
        read = flags.gather(-1, block[:, None].expand(-1, flags.shape[1], -1))
        return read & (places >= self.first[:, None, None]) & (places < self.end[:, None, None])

    def density(self) -> Tensor:
        """Return the share of a sequence's blocks that is read, averaged over batch and heads, fp32 []."""
        blocks = -((self.first - self.end) // self.block)
        return (self.counts / blocks[:, None]).mean()
