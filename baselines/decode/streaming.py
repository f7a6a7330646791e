"""StreamingLLM reads the first tokens (attention sinks) and a sliding window, whatever the new token asks for.

What it is  the first block, the current block, and the nearest blocks before it, as many as the budget has
Source      arXiv:2309.17453, section 3.2; mit-han-lab/streaming-llm (MIT)
Exact       which tokens are read, in whole blocks
Differs     upstream throws the other keys away and gives those that stay the positions 0, 1, 2 and so on. Here the
            cache and its positions stay as they are, since the methods beside it need all keys. Sinks and window
            are whole blocks; upstream keeps 4 sink tokens
Timed       plan (making the lists) and attend (the kernel for block lists)
"""

from __future__ import annotations

import torch
from torch import Tensor

from seerbench.core.block_mask import block_count
from seerbench.methods.decode_protocol import BudgetDecode, CacheState, NewToken


class StreamingDecode(BudgetDecode[CacheState]):
    """Decoding with attention sinks and a sliding window: the floor that any choice must beat."""

    name = "streaming"

    def score(self, token: NewToken, state: CacheState) -> Tensor:
        """Return the number of each block, so that the last ones are the best."""
        blocks = torch.arange(block_count(max(state.lengths), self.block), device=token.q.device)
        return blocks.float().expand(len(token.q), token.keys.shape[1], -1)
