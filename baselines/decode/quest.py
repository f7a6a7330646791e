"""Quest bounds each block's largest score by the minimum and maximum of its keys, and reads the best blocks.

    bound(h, J) = sum_d max(q_hd max_{j in J} k_jd, q_hd min_{j in J} k_jd)  >=  q_h . k_j  for every j in J

What it is  each block has the minimum and maximum of its keys after RoPE, channel by channel. A new token ranks
            blocks by this bound
Source      arXiv:2406.10774; mit-han-lab/Quest
Exact       the bound of every query head
Differs     one choice per key/value head, by the largest bound of its group: the kernel reads one list per group.
            Upstream's kernels choose per query head, and take no groups. Blocks of 64 tokens by default, as of the
            methods beside it; upstream has pages of 16. The first block is always read, and the current one is in
            addition to the budget, as for all methods here. Upstream's budget contains the current page, and its
            first two layers are dense; here every layer is sparse
Timed       plan (bounds and selection, in plain torch) and attend (the kernel for block lists). Upstream's kernel
            for the bounds is not used
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from seerbench.core.block_mask import block_count
from seerbench.core.problem import LayerContext
from seerbench.methods.decode_protocol import BudgetDecode, CacheState, NewToken, integers

ROOM = 64  # blocks of room that a prefill leaves for those to come


class KeyRanges(CacheState):
    """The minimum and maximum of the keys in each block of one layer's cache, channel by channel.

    Attributes:
        ranges: the maximum of (k, -k) over each block, [B, Hk, room, 2 D]: the maxima, then the minima with the
            other sign. A block without a token has -inf.
    """

    def __init__(self, keys: Tensor, first: Sequence[int], block: int) -> None:
        """Take in a prompt.

        Args:
            keys: after RoPE, [B, Hk, N, D].
            first: place of each sequence's first token among the N.
            block: tokens per block.
        """
        super().__init__(keys.shape[2], first)
        self.block = block
        if any(first):  # tokens of each sequence from 0 on
            keys = torch.stack([row.roll(-start, 1) for row, start in zip(keys, first, strict=True)])
        ends = integers(self.lengths, torch.int64, keys.device)[:, None, None, None]
        outside = torch.arange(keys.shape[2], device=keys.device)[:, None] >= ends

        def blocks(fill: float) -> Tensor:
            inside = keys.masked_fill(outside, fill) if any(first) else keys
            return F.pad(inside, (0, 0, 0, -keys.shape[2] % block), value=fill).unflatten(2, (-1, block))

        ranges = torch.cat([blocks(-math.inf).amax(3), -blocks(math.inf).amin(3)], -1)
        self.ranges = _with_room(ranges, ROOM)

    def kept_bytes(self) -> int:
        return self.ranges.nbytes

    def take(self, key: Tensor) -> None:
        """Take in the key of one new token per sequence, after RoPE, [B, Hk, 1, D]."""
        self.extend()
        if block_count(max(self.lengths), self.block) > self.ranges.shape[2]:
            self.ranges = _with_room(self.ranges, self.ranges.shape[2])
        rows = torch.arange(len(key), device=key.device)
        blocks = integers(tuple((length - 1) // self.block for length in self.lengths), torch.int64, key.device)
        self.ranges[rows, :, blocks] = torch.maximum(self.ranges[rows, :, blocks], _both_signs(key)[:, :, 0])


def _both_signs(x: Tensor) -> Tensor:
    """Return x [..., D] beside -x, [..., 2 D]."""
    return torch.cat([x, -x], -1)


def _with_room(ranges: Tensor, room: int) -> Tensor:
    """Return ranges [B, Hk, n, 2 D] with room for more blocks behind them."""
    return F.pad(ranges, (0, 0, 0, room), value=-math.inf)


class QuestDecode(BudgetDecode[KeyRanges]):
    """Decoding that ranks blocks by an upper bound of their scores."""

    name = "quest"

    @torch.no_grad()
    def start(self, layer: LayerContext, keys: Tensor, first: Sequence[int]) -> KeyRanges:
        return KeyRanges(keys, first, self.block)

    @torch.no_grad()
    def append(self, token: NewToken, state: KeyRanges) -> None:
        state.take(token.keys[:, :, state.end : state.end + 1])

    @torch.no_grad()
    def score(self, token: NewToken, state: KeyRanges) -> Tensor:
        """Return the largest bound of each group, not divided by sqrt(D)."""
        # q max k where q > 0 and q min k where q < 0, of which one is 0: (q)+ max k + (-q)+ max(-k).
        q = (
            _both_signs(token.q.float()).relu().unflatten(1, (token.keys.shape[1], -1))[..., 0, :]
        )  # [B, Hk, g, 2 D]
        ranges = state.ranges[:, :, : block_count(max(state.lengths), self.block)]
        return (q @ ranges.float().mT).amax(2)
