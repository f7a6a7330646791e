"""Block-sparse attention in a short Triton kernel, from which a GPU kernel of your own can start.

    seerbench compare examples/triton_attention.py

One program per query block and head goes through that row's list and keeps a running maximum, sum and output.
Without a GPU, Triton's interpreter checks it: TRITON_INTERPRET=1 seerbench compare ... --contexts 64 --block 16
"""

import os

import torch
import triton
import triton.language as tl


@triton.jit
def forward(
    q_at, k_at, v_at, out_at, counts, indices, width, n, group, scale,
    D: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1).to(tl.int64)  # over the heads of all sequences
    queries, channels = row * BQ + tl.arange(0, BQ), tl.arange(0, D)
    here = (head * n + queries[:, None]) * D + channels
    q = tl.load(q_at + here, mask=queries[:, None] < n, other=0.0)
    top = tl.full([BQ], -1e30, tl.float32)  # finite, since inf - inf of a row without keys would be NaN
    total, out = tl.zeros([BQ], tl.float32), tl.zeros([BQ, D], tl.float32)
    listed = head * tl.num_programs(0) + row
    for entry in range(tl.load(counts + listed)):
        keys = tl.load(indices + listed * width + entry) * BK + tl.arange(0, BK)
        there = (head // group * n + keys[:, None]) * D + channels
        k = tl.load(k_at + there, mask=keys[:, None] < n, other=0.0)
        scores = tl.dot(q, k.T) * scale
        scores = tl.where((keys <= queries[:, None]) & (keys < n), scores, -float("inf"))
        new = tl.maximum(top, scores.max(1))
        weights, alpha = tl.exp2(scores - new[:, None]), tl.exp2(top - new)
        v = tl.load(v_at + there, mask=keys[:, None] < n, other=0.0)
        out = out * alpha[:, None] + tl.dot(weights.to(v.dtype), v)
        total, top = total * alpha + weights.sum(1), new
    out = out / tl.where(total == 0, 1, total)[:, None]
    tl.store(out_at + here, out.to(out_at.dtype.element_ty), mask=queries[:, None] < n)


def refuses(case):
    """Return why this kernel cannot run `case`, an AttentionProblem, or None."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if case.device == "cpu" and not interpreted:
        return "it needs a GPU; TRITON_INTERPRET=1 checks it without one"
    if case.dtype == "float32" and not interpreted:
        return "float32 products would be rounded to TF32; take float16 or bfloat16"
    return None


def attention(q, k, v, mask):
    """Return attention over the blocks of a BlockMask, [B, Hq, N, D]; q [B, Hq, N, D], k and v [B, Hk, N, D]."""
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    batch, heads, n, d = q.shape
    out, indices = torch.empty_like(q), mask.kv_indices.contiguous()
    grid = (mask.kv_num_blocks.shape[-1], batch * heads)
    scale = d**-0.5 * 1.44269504  # exp2 is the exponential that the hardware has
    group = heads // k.shape[1]
    forward[grid](q, k, v, out, mask.kv_num_blocks.contiguous(), indices, indices.shape[-1], n, group, scale,
                  d, mask.block_q, mask.block_k)  # fmt: skip
    return out
