"""Dense decoding reads the whole cache.

What it is  attention of the new token over all tokens of its sequence; nothing is planned
Source      PyTorch's scaled_dot_product_attention, which chooses its kernel
Exact       everything: it is the reference of all methods for decoding
Differs     a batch with padding runs under a mask, and PyTorch may then take a slower kernel
Timed       attend
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seerbench.kernels.decode.dense import dense_decode_attention
from seerbench.methods.decode_protocol import CacheState, DecodeMethod, NewToken


@dataclass(frozen=True)
class WholeCache:
    """The plan of dense decoding: everything from each sequence's first token to the place `end`."""

    first: tuple[int, ...]
    end: int

    def density(self) -> Tensor:
        """Return the share of the blocks that is read, fp32 []."""
        return torch.ones(())


class DenseDecode(DecodeMethod[CacheState]):
    """Decoding that reads the whole cache."""

    name = "dense"

    def plan(self, token: NewToken, state: CacheState) -> WholeCache:
        return WholeCache(state.first, state.end)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: WholeCache) -> Tensor:
        visible = None
        if any(plan.first):
            first = torch.tensor(plan.first, device=q.device)[:, None, None, None]
            visible = torch.arange(plan.end, device=q.device) >= first
        return dense_decode_attention(q, k[:, :, : plan.end], v[:, :, : plan.end], visible)
