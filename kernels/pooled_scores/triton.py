"""Score the mean key of each block for each block of queries: FlashPrefill's score.

    S[I, J] = log sum_{i in block I that sees J} exp(q_i . mean(k_J) / sqrt(D))    (empty sum: -inf)

A query sees a block from the block's last key on (`from_first` false) or from its first key on (true).

Paper   FlashPrefill (arXiv:2603.06199, last key) and its V2 (arXiv:2608.19758, first key);
        baselines/flashprefill.py and flashprefill_v2.py make their block masks from it.
Oracle  `reference.pooled_scores` in float64, which writes the N x n logits in chunks.
Here    one program per block of queries of one head; the logits stay in registers, only n x n sums are written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seerbench.kernels.primitives import addressable

BLOCKS = (16, 32, 64, 128)  # tokens per block: a power of two, of which a program holds all queries
COLUMNS = 64  # key blocks per step of a program: a [BLOCK, 64] tile of logits fits the registers of 4 warps


def pooled_scores(q: Tensor, pooled_k: Tensor, block: int, from_first: bool = False) -> Tensor:
    """Return the scores on a GPU, fp32 [B, Hq, n, n], from the mean keys pooled_k [B, Hk, n, D].

    q [B, Hq, N, D] in the dtype of pooled_k; block: tokens of a block; from_first: whether a query sees a block
    from its first key on.
    """
    batch, heads, tokens, head_dim = q.shape
    q, pooled_k = addressable(q), pooled_k.contiguous()
    n = pooled_k.shape[2]
    scores = torch.full((batch, heads, n, n), -torch.inf, dtype=torch.float32, device=q.device)
    _log_sums[(n, heads, batch)](
        q, pooled_k, scores, *q.stride()[:3], *pooled_k.stride()[:3], tokens, n, heads // pooled_k.shape[1],
        head_dim**-0.5, HEAD_DIM=head_dim, BLOCK=block, COLUMNS=COLUMNS,
        SEEN_FROM=0 if from_first else block - 1, num_warps=4,
    )  # fmt: skip
    return scores


@triton.jit(do_not_specialize=["tokens", "n", "group"])
def _log_sums(
    q_ptr, k_ptr, scores_ptr, q_b, q_h, q_n, k_b, k_h, k_n, tokens, n, group, scale,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, SEEN_FROM: tl.constexpr,
):  # fmt: skip
    i = n - 1 - tl.program_id(0)  # the longest rows first
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    local = tl.arange(0, BLOCK)
    dims = tl.arange(0, HEAD_DIM)
    rows = i * BLOCK + local
    real = rows < tokens
    q_base = q_ptr + batch * q_b + head.to(tl.int64) * q_h + (i * BLOCK).to(tl.int64) * q_n
    q = tl.load(q_base + local[:, None] * q_n + dims[None, :], mask=real[:, None], other=0.0)
    k_base = k_ptr + batch * k_b + (head // group).to(tl.int64) * k_h
    out = scores_ptr + ((batch * tl.num_programs(1) + head) * n + i) * n
    for start in range(0, i + 1, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        k = tl.load(k_base + columns[None, :] * k_n + dims[:, None], mask=columns[None, :] < n, other=0.0)
        s = tl.dot(q, k, input_precision="ieee") * scale  # [BLOCK, COLUMNS]
        seen = (columns[None, :] * BLOCK + SEEN_FROM <= rows[:, None]) & real[:, None]
        s = tl.where(seen, s, -float("inf"))
        column_max = tl.max(s, 0)
        # In a column that no query sees, s - 0 is -inf where s - -inf would be NaN.
        finite = tl.where(column_max == -float("inf"), 0.0, column_max)
        total = tl.sum(tl.exp(s - finite[None, :]), 0)
        result = tl.where(total > 0, finite + tl.log(tl.where(total > 0, total, 1.0)), -float("inf"))
        tl.store(out + columns, result, mask=columns <= i)
