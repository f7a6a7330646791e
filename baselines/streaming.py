"""StreamingLLM keeps the first tokens (attention sinks) and a sliding window, whatever the input.

What it is  every head keeps, in each row, block 0 and the nearest blocks, together as many as the top-k rule keeps
            (core/top_k.py), so a requested sparsity means as many blocks as for SeerAttention
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
from seerbench.core.top_k import blocks_per_row
from seerbench.methods.block_selection import mask_from_flags
from seerbench.methods.protocol import BlockSparse
from seerbench.methods.registry import register


@register("streaming", cites="arXiv:2309.17453", fidelity="our port to prefill blocks")
class StreamingLLM(BlockSparse):
    """Attention sinks and a sliding window, static: the floor that any learned choice must beat."""

    sparsity: float
    takes_last_rows = True

    def __init__(self, sparsity: float = 0.9, block: int = 64) -> None:
        """Make the method for a requested sparsity, in [0, 1), and a block size in tokens."""
        self.sparsity, self.block = sparsity, block

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        n = block_count(q.shape[2], self.block)
        count = blocks_per_row(n, self.sparsity, self.last_rows_dense, device=q.device)[:, None]
        rows = torch.arange(n, device=q.device)
        distance = rows[:, None] - rows
        window = distance < (count - 1).clamp_min(1)
        sink = (rows == 0) & (count > 1)
        kept = (window | sink).expand(q.shape[0], q.shape[1], n, n)
        return mask_from_flags(kept, q.shape[2], self.block, self.block)
