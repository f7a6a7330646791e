"""Choose blocks by the mean of their queries and keys: a method in 40 lines, from which one of yours can start.

    seerbench evaluate examples/pooled_top_k.py --quick

Each query block reads the key blocks whose mean key has the largest product with its mean query.
"""

import torch

from seerbench.core.block_mask import block_count
from seerbench.core.top_k import blocks_per_row
from seerbench.methods.block_selection import mask_from_flags
from seerbench.methods.protocol import BlockSparse
from seerbench.methods.registry import register


@register("pooled-top-k", title="Pooled top-k", cites="none", fidelity="an example")
class PooledTopK(BlockSparse):
    """The key blocks whose mean key fits the mean query of a block best."""

    takes_last_rows = True  # `last_rows_dense` rows at the end keep every block, within the budget

    def __init__(self, sparsity=0.9, block=64):
        self.sparsity, self.block = sparsity, block

    def means(self, x, n):
        """Return the mean of each block, [B, H, n, D]; the last block may have fewer tokens."""
        tokens = x.new_full((n,), self.block)
        tokens[-1] = x.shape[2] - (n - 1) * self.block
        padded = torch.nn.functional.pad(x, (0, 0, 0, n * self.block - x.shape[2]))
        return padded.unflatten(2, (n, self.block)).sum(3) / tokens[:, None]

    def plan(self, q, k, layer):
        n = block_count(q.shape[2], self.block)
        rows = torch.arange(n, device=q.device)
        keys = self.means(k, n).repeat_interleave(q.shape[1] // k.shape[1], 1)
        scores = self.means(q, n) @ keys.transpose(-1, -2)
        scores[..., 0] = torch.finfo(scores.dtype).max  # the first block is the attention sink
        scores = scores.masked_fill(rows == rows[:, None], torch.inf)  # every block reads its own keys
        scores = scores.masked_fill(rows > rows[:, None], -torch.inf)
        places = scores.argsort(-1, descending=True).argsort(-1)  # the place of each key block in its row
        kept = blocks_per_row(n, self.sparsity, self.last_rows_dense, device=q.device)
        return mask_from_flags(places < kept[:, None], q.shape[2], self.block, self.block)
