"""XAttention's block masses in plain torch, on any device: the strided scores in chunks of rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seerbench.core.block_mask import block_count
from seerbench.core.reference import grouped_products

CHUNK_BYTES = 2**30  # fp32 scores held at one time; at 128k and 32 heads all of them would take 32 GiB


def antidiagonal_mass(q: Tensor, k: Tensor, block: int, stride: int) -> Tensor:
    """Return the mass of each block, fp32 [B, Hq, n, n] and zero above the diagonal, n = ceil(N / block).

    q [B, Hq, N, D], k [B, Hk, N, D]; stride must divide block.
    """
    tokens, head_dim = q.shape[2], q.shape[3]
    n = block_count(tokens, block)
    q, k = (F.pad(x, (0, 0, 0, n * block - tokens)).unflatten(2, (-1, stride)) for x in (q, k))
    # Query S-1-a meets key a: their sum over a is the antidiagonal of a stride x stride square.
    q, k = q.flip(3).flatten(3), k.flatten(3)
    width, real = block // stride, block_count(tokens, stride)
    mass = q.new_zeros(*q.shape[:2], n, n, dtype=torch.float32)
    rows = max(1, CHUNK_BYTES // (4 * q.shape[0] * q.shape[1] * n * width * width))  # rows of blocks per chunk
    for first in range(0, n, rows):
        last = min(first + rows, n)
        # Keys of later rows are in the future.
        products = grouped_products(q[:, :, first * width : last * width], k[:, :, : last * width])
        scores = products.float() / (head_dim**0.5 * stride)
        places = torch.arange(last * width, device=q.device)
        seen = places[first * width :, None] >= places
        weights = scores.masked_fill_(~seen, -torch.inf).softmax(-1)
        weights[:, :, max(0, real - first * width) :] = 0.0  # rows of padding
        sums = weights.unflatten(-1, (last, width)).sum(-1).unflatten(-2, (last - first, width)).sum(-2)
        mass[:, :, first:last, :last] = sums
    return mass
