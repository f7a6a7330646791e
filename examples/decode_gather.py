"""Attention of one new token over listed blocks of its cache, in plain torch: gather, then softmax.

It is correct and slow. A kernel for decoding of your own can start from it; `kind` says that it is one.

    seerbench compare examples/decode_gather.py
"""

from itertools import product

import torch

kind = "decode"


def attention(q, k, v, lists):
    """Return attention over the blocks of CacheLists, [B, Hq, 1, D]; q [B, Hq, 1, D], k and v [B, Hk, N, D]."""
    out = torch.zeros_like(q)  # a head without a block keeps the output 0
    batch, heads, _, head_dim = q.shape
    group = heads // k.shape[1]  # query heads that share a key/value head, and its list
    counts, first, end = lists.counts.tolist(), lists.first.tolist(), lists.end.tolist()
    offsets = torch.arange(lists.block, device=q.device)
    for b, h in product(range(batch), range(k.shape[1])):
        blocks = lists.blocks[b, h, : counts[b][h]]
        places = first[b] + (blocks[:, None] * lists.block + offsets).flatten()  # blocks begin at the first token
        places = places[places < end[b]]  # the last block may be partial
        if len(places):
            mine = slice(h * group, (h + 1) * group)
            scores = q[b, mine, 0] @ k[b, h, places].T * head_dim**-0.5
            out[b, mine, 0] = scores.softmax(-1) @ v[b, h, places]
    return out
