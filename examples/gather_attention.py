"""Block-sparse attention in plain torch: gather the listed keys of each query block, then softmax.

It is correct and slow. A kernel of your own can start from it.

    seerbench compare examples/gather_attention.py
"""

from itertools import product

import torch


def attention(q, k, v, mask):
    """Return attention over the blocks of a BlockMask, [B, Hq, N, D]; q [B, Hq, N, D], k and v [B, Hk, N, D]."""
    out = torch.zeros_like(q)  # rows without a block keep the output 0
    batch, heads, n, head_dim = q.shape
    group = heads // k.shape[1]  # query heads that share a key/value head
    offsets = torch.arange(mask.block_k, device=q.device)
    counts = mask.kv_num_blocks.tolist()
    for b, h, row in product(range(batch), range(heads), range(mask.kv_num_blocks.shape[-1])):
        count = counts[b][h][row]
        if count == 0:
            continue
        blocks = mask.kv_indices[b, h, row, :count]
        keys = (blocks[:, None] * mask.block_k + offsets).flatten()
        keys = keys[keys < n]  # the tail block may be partial
        queries = torch.arange(row * mask.block_q, min(n, (row + 1) * mask.block_q), device=q.device)
        scores = q[b, h, queries] @ k[b, h // group, keys].T * head_dim**-0.5
        scores = scores.masked_fill(keys > queries[:, None], -torch.inf)  # causal inside the block
        out[b, h, queries] = scores.softmax(-1) @ v[b, h // group, keys]
    return out
