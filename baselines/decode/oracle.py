"""The oracle reads the blocks to which the new token really attends most; it finds them by computing all weights.

What it is  a block's score is the largest true attention weight in it, over its keys and the group's query heads
Source      the target of SeerAttention-R's gate (arXiv:2506.08889); the authors' code has such an oracle too
Exact       the scores, in fp32
Differs     the authors' kernel gives padding in a partly padded block the score 0; here it has none
Fidelity    not a published method: what a gate without errors would choose. Of all choices of as many blocks it
            has the largest sum of scores. That is no bound on quality, since a maximum is not the loss
Timed       plan (all attention weights, in plain torch) and attend. `attend` is what a gate without errors would
            leave to compute; nobody would run plan and attend together
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seerbench.core.block_mask import block_count
from seerbench.core.reference import grouped_products
from seerbench.methods.decode_protocol import BudgetDecode, CacheState, NewToken, integers


class OracleDecode(BudgetDecode[CacheState]):
    """Decoding that reads the blocks of the largest true attention weights."""

    name = "oracle"

    @torch.no_grad()
    def score(self, token: NewToken, state: CacheState) -> Tensor:
        """Return the largest attention weight of each block, over its keys and the group."""
        q, keys, device = token.q, token.keys[:, :, : state.end], token.q.device
        logits = grouped_products(q.float() * q.shape[3] ** -0.5, keys.float())[:, :, 0]  # [B, Hq, end]
        first = integers(state.first, torch.int64, device)[:, None]
        padding = torch.arange(state.end, device=device) < first
        weights = logits.masked_fill(padding[:, None], -math.inf).softmax(-1)
        of_group = weights.unflatten(1, (keys.shape[1], -1)).amax(2)  # [B, Hk, end]
        places = first + torch.arange(block_count(max(state.lengths), self.block) * self.block, device=device)
        real = (places < state.end)[:, None]
        places = places.clamp(max=state.end - 1)[:, None].expand(-1, keys.shape[1], -1)
        return of_group.gather(2, places).where(real, 0.0).unflatten(2, (-1, self.block)).amax(3)
