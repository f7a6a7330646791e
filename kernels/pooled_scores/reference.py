"""FlashPrefill's block scores in plain torch, on any device: the N x n logits in chunks of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from seerbench.core.reference import repeat_kv
from seerbench.kernels.attn_gate.reference import pool_blocks

CHUNK = 2048  # query rows whose logits exist at one time


def pooled_scores(q: Tensor, k: Tensor, block: int, from_first: bool = False) -> Tensor:
    """Return the score of each block, fp32 [B, Hq, n, n], -inf where no query sees it.

    q [B, Hq, N, D], k [B, Hk, N, D]; n = ceil(N / block); from_first: whether a query sees a block from its first
    key on, and not only from its last. Keys are pooled in their own dtype.
    """
    return scores_of_means(q, pool_blocks(k, block)["avg"], block, from_first)


def scores_of_means(q: Tensor, pooled_k: Tensor, block: int, from_first: bool = False) -> Tensor:
    """Return `pooled_scores` from mean keys pooled_k [B, Hk, n, D] that exist already."""
    tokens, head_dim = q.shape[2], q.shape[3]
    pooled = repeat_kv(pooled_k, q.shape[1])
    n = pooled.shape[2]
    seen_from = torch.arange(n, device=q.device) * block + (0 if from_first else block - 1)
    scores = torch.full((*q.shape[:2], n, n), -torch.inf, dtype=torch.float32, device=q.device)
    rows = max(1, CHUNK // block) * block
    for start in range(0, tokens, rows):
        part = (q[:, :, start : start + rows] @ pooled.mT).float() * head_dim**-0.5
        queries = torch.arange(start, start + part.shape[2], device=q.device)
        part = part.masked_fill_(seen_from > queries[:, None], -torch.inf)
        part = torch.nn.functional.pad(part, (0, 0, 0, -part.shape[2] % block), value=-torch.inf)
        first = start // block
        scores[:, :, first : first + part.shape[2] // block] = part.unflatten(2, (-1, block)).logsumexp(-2)
    return scores
