"""Attention that also returns the block-max-pooled map: what AttnGate is distilled from (Algorithm 1).

    P[i, j] = softmax_j(q_i . k_j / sqrt(D)),  j <= i
    O = P V,   LSE[i] = log sum_j exp(q_i . k_j / sqrt(D)),
    D[I, J] = max_{i in block I, j in block J, j <= i} P[i, j]     (0 above the diagonal)

D is not row-normalised here; the loss does that (its target is D[I, :] / sum_J D[I, J]).

Paper   SeerAttention (arXiv:2410.13276), Algorithm 1; Figure 8 times it beside FA-2 and the naive form.
Oracle  `naive_pooled_attention` in float64: it materialises P.
CPU     `streamed`: one row of blocks at a time, O(N * block) memory a head.
Hopper  one pass, pooled_hopper.py, with a scratch of one row of tiles a program, in parts of O not yet written.
GPU     two passes, no scratch: the forward (block_sparse_attention.py, whose rows all share one full list),
        then Q K^T again in `_pool`, where the final log-sum-exp is known, so that
            D[I, J] = exp(max_{i, j} (s_ij - LSE_i))
        needs one exponential a tile. The paper's scratch of row maxima is O(N^2 / 64), 17.7 GB at 128k.

D leaves in q's dtype: computed in fp32 and rounded once, at the end (2^-9 relative in bf16; in fp16 2^-11,
and to zero below 3e-8). It is the largest output but O: at 128k and 32 heads 256 MiB in 16 bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seerbench.core.block_mask import BlockMask, block_count, causal_blocks
from seerbench.kernels.block_sparse import api as block_sparse_api

LOG2_E = 1.4426950408889634


def two_passes(q: Tensor, k: Tensor, v: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same on any GPU: the forward, then the map."""
    # The forward's own tiles are 128 x 128 (the fastest), whatever blocks the map has.
    batch, heads, n, _ = q.shape
    full = full_mask(batch, heads, n, 128, q.device)
    o, lse = block_sparse_api.block_sparse_attention_with_lse(q, k, v, full)
    blocks = block_count(n, block)
    d = torch.zeros(batch, heads, blocks, blocks, dtype=q.dtype, device=q.device)
    launch_pool(q, k, lse, d, block)
    return o, lse, d


def full_mask(batch: int, heads: int, n: int, block: int, device: torch.device) -> BlockMask:
    """Every causal block, as one list that all rows share: n / block entries in memory, not its square."""
    counts = causal_blocks(n, block, block, device).sum(-1, dtype=torch.int32).expand(batch, heads, -1)
    columns = torch.arange(block_count(n, block), dtype=torch.int32, device=device)
    return BlockMask(counts, columns.expand(*counts.shape, -1), n, block, block)


def launch_pool(q: Tensor, k: Tensor, lse: Tensor, d: Tensor, block: int) -> None:
    """Run `_pool` into d, which is zero above the diagonal already."""
    batch, heads, n, head_dim = q.shape
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    _pool[(block_count(n, block) * heads * batch,)](
        q, k, lse, d, *q.stride()[:3], *k.stride()[:3], n, heads, heads // k.shape[1], head_dim**-0.5 * LOG2_E,
        HEAD_DIM=head_dim, BLOCK=block, num_warps=8 if block == 128 else 4, num_stages=3,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n", "heads", "group"])
def _pool(
    q_ptr, k_ptr, lse_ptr, d_ptr, q_b, q_h, q_n, k_b, k_h, k_n, n, heads, group, scale,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row of D: S = Q K^T tile by tile, and of each tile the largest s - LSE, in base 2."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(n, BLOCK)
    kv, rest = pid // (group * blocks), pid % (group * blocks)
    tile = blocks - 1 - rest // group  # longest rows first, the heads of a group side by side
    kv_heads = heads // group
    batch, head = (kv // kv_heads).to(tl.int64), (kv % kv_heads * group + rest % group).to(tl.int64)
    local = tl.arange(0, BLOCK)
    offs_d = tl.arange(0, HEAD_DIM)
    offs_m = tile * BLOCK + local
    row = batch * heads + head
    q_base = q_ptr + batch * q_b + head * q_h + (tile * BLOCK).to(tl.int64) * q_n
    q = tl.load(q_base + local[:, None] * q_n + offs_d[None, :], mask=offs_m[:, None] < n, other=0.0)
    # A row past the end has a probability of exp2(-inf) everywhere.
    lse = tl.load(lse_ptr + row * n + offs_m, mask=offs_m < n, other=float("inf")) * 1.4426950408889634
    k_ptrs = k_ptr + batch * k_b + (head // group) * k_h + local[None, :] * k_n + offs_d[:, None]
    d_ptr += (row * blocks + tile) * blocks
    for _ in range(tile):
        z = tl.dot(q, tl.load(k_ptrs), input_precision="ieee") * scale - lse[:, None]
        tl.store(d_ptr, tl.exp2(tl.max(z)))
        k_ptrs += BLOCK * k_n
        d_ptr += 1
    k = tl.load(k_ptrs, mask=offs_m[None, :] < n, other=0.0)
    z = tl.dot(q, k, input_precision="ieee") * scale - lse[:, None]
    z = tl.where(local[:, None] >= local[None, :], z, -float("inf"))
    tl.store(d_ptr, tl.exp2(tl.max(z)))
