"""Attention that also returns the block-max-pooled map: what AttnGate is distilled from (Algorithm 1).

    P[i, j] = softmax_j(q_i . k_j / sqrt(D)),  j <= i
    O = P V,   LSE[i] = log sum_j exp(q_i . k_j / sqrt(D)),
    D[I, J] = max_{i in block I, j in block J, j <= i} P[i, j]     (0 above the diagonal)

D is not row-normalised here; the loss does that (its target is D[I, :] / sum_J D[I, J]).

Paper   SeerAttention (arXiv:2410.13276), Algorithm 1; Figure 8 times it beside FA-2 and the naive form.
Oracle  `reference.naive_pooled_attention` in float64, which materialises P.
Here    two passes without a scratch, for any GPU: the block-sparse forward, all of whose rows share one full list,
        then Q K^T again in `_pool`. There the final log-sum-exp is known, and
            D[I, J] = exp(max_{i, j} (s_ij - LSE_i))
        needs one exponential per tile. The paper's scratch of row maxima is O(N^2 / 64), 17.7 GB at 128k.
        On Hopper, hopper.py needs one pass; on a CPU, `reference.streamed` runs.

D is returned in q's dtype: computed in fp32 and rounded once, at the end (2^-9 relative in bf16, 2^-11 in fp16,
where values below 3e-8 become zero). It is the largest output after O: 256 MiB at 128k and 32 heads in 16 bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seerbench.core.block_mask import BlockMask, block_count, causal_blocks
from seerbench.kernels.block_sparse.api import block_sparse_attention_with_lse
from seerbench.kernels.primitives import LOG2_E, addressable, base_2_scale, program_order

# block -> warps of `_pool`, whose tiles are block x block: 8 hold a 128 x 128 tile of scores without spilling.
WARPS = {32: 4, 64: 4, 128: 8}


def two_passes(q: Tensor, k: Tensor, v: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (o, lse, d) as `api.pooled_attention` does, on any GPU: the forward, then the map."""
    # The forward's own tiles are 128 x 128, the fastest, whatever blocks the map has.
    batch, heads, n, _ = q.shape
    full = full_mask(batch, heads, n, 128, q.device)
    o, lse = block_sparse_attention_with_lse(q, k, v, full)
    blocks = block_count(n, block)
    d = torch.zeros(batch, heads, blocks, blocks, dtype=q.dtype, device=q.device)
    launch_pool(q, k, lse, d, block)
    return o, lse, d


def full_mask(batch: int, heads: int, n: int, block: int, device: torch.device) -> BlockMask:
    """Return a mask of every causal block, whose rows all share one list of ceil(n / block) entries."""
    counts = causal_blocks(n, block, block, device).sum(-1, dtype=torch.int32).expand(batch, heads, -1)
    columns = torch.arange(block_count(n, block), dtype=torch.int32, device=device)
    return BlockMask.unchecked(counts, columns.expand(*counts.shape, -1), n, block, block)


def launch_pool(q: Tensor, k: Tensor, lse: Tensor, d: Tensor, block: int) -> None:
    """Run `_pool` into d [B, Hq, n, n], which must be zero above the diagonal already."""
    batch, heads, n, head_dim = q.shape
    q, k = addressable(q), addressable(k)
    _pool[(block_count(n, block) * heads * batch,)](
        q, k, lse, d, *q.stride()[:3], *k.stride()[:3], n, heads, heads // k.shape[1], base_2_scale(head_dim),
        HEAD_DIM=head_dim, BLOCK=block, num_warps=WARPS[block], num_stages=3,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n", "heads", "group"])
def _pool(
    q_ptr, k_ptr, lse_ptr, d_ptr, q_b, q_h, q_n, k_b, k_h, k_n, n, heads, group, scale,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute one row of D: S = Q K^T tile by tile, and the largest s - LSE of each tile, in base 2."""
    blocks = tl.cdiv(n, BLOCK)
    batch, head, tile = program_order(tl.program_id(0), blocks, heads, group)
    batch, head = batch.to(tl.int64), head.to(tl.int64)
    local = tl.arange(0, BLOCK)
    offs_d = tl.arange(0, HEAD_DIM)
    offs_m = tile * BLOCK + local
    row = batch * heads + head
    q_base = q_ptr + batch * q_b + head * q_h + (tile * BLOCK).to(tl.int64) * q_n
    # [BLOCK, HEAD_DIM]
    q = tl.load(q_base + local[:, None] * q_n + offs_d[None, :], mask=offs_m[:, None] < n, other=0.0)
    # A row past the end has a probability of exp2(-inf) everywhere.
    lse = tl.load(lse_ptr + row * n + offs_m, mask=offs_m < n, other=float("inf")) * LOG2_E
    k_ptrs = k_ptr + batch * k_b + (head // group) * k_h + local[None, :] * k_n + offs_d[:, None]
    d_ptr += (row * blocks + tile) * blocks
    for _ in range(tile):  # z is [BLOCK, BLOCK]
        z = tl.dot(q, tl.load(k_ptrs), input_precision="ieee") * scale - lse[:, None]
        tl.store(d_ptr, tl.exp2(tl.max(z)))
        k_ptrs += BLOCK * k_n
        d_ptr += 1
    k = tl.load(k_ptrs, mask=offs_m[None, :] < n, other=0.0)
    z = tl.dot(q, k, input_precision="ieee") * scale - lse[:, None]
    z = tl.where(local[:, None] >= local[None, :], z, -float("inf"))
    tl.store(d_ptr, tl.exp2(tl.max(z)))
