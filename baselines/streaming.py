"""StreamingLLM keeps the first tokens (attention sinks) and a sliding window, whatever the input.

What it is  every head keeps block 0 and the nearest k - 1 blocks; k is that of the top-k rule (core/top_k.py), so
            a requested sparsity means as many blocks as for SeerAttention
Paper       arXiv:2309.17453, section 3.2
Upstream    mit-han-lab/streaming-llm (MIT). It is written for decoding, so the mask is ours.
Fidelity    our port to prefill blocks: sinks and window are whole blocks
Timed       plan (making the lists) and attend (our block-sparse kernel)
"""

from __future__ import annotations

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.problem import LayerContext
from seerbench.core.top_k import top_k_count
from seerbench.methods.block_selection import mask_from_flags
from seerbench.methods.protocol import BlockSparse
from seerbench.methods.registry import register


@register("streaming", cites="arXiv:2309.17453", fidelity="our port to prefill blocks")
class StreamingLLM(BlockSparse):
    """Attention sinks and a sliding window, static: the floor that any learned choice must beat."""

    sparsity: float

    def __init__(self, sparsity: float = 0.9, block: int = 64) -> None:
        """Make the method for a requested sparsity, in [0, 1), and a block size in tokens."""
        self.sparsity, self.block = sparsity, block

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        n = block_count(q.shape[2], self.block)
        budget = top_k_count(n, self.sparsity)
        rows = torch.arange(n, device=q.device)
        distance = rows[:, None] - rows[None, :]
        window = distance < max(1, budget - 1)
        sink = (rows[None, :] == 0).expand(n, n) if budget > 1 else torch.zeros_like(window)
        kept = (window | sink).expand(q.shape[0], q.shape[1], n, n)
        return mask_from_flags(kept, q.shape[2], self.block, self.block)
