"""Score the mean key of each block for each block of queries (FlashPrefill): choice of the kernel.

triton.py defines the score, reference.py computes it in plain torch.
"""

from __future__ import annotations

from torch import Tensor

from seerbench.kernels.attn_gate import pool
from seerbench.kernels.pooled_scores import reference, triton


def pooled_scores(q: Tensor, k: Tensor, block: int) -> Tensor:
    """Return the score of each block, fp32 [B, Hq, n, n], -inf where no query sees the whole block.

    q [B, Hq, N, D], k [B, Hk, N, D]; n = ceil(N / block).
    """
    if q.is_cuda:
        return triton.pooled_scores(q, pool.pool_blocks(k, block, ["avg"])["avg"], block)
    return reference.pooled_scores(q, k, block)
