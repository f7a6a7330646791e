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
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from seerbench.attention import BlockMask, Case, block_count, causal_blocks, repeat_kv
from seerbench.kernels import block_sparse_attention

LOG2_E = 1.4426950408889634


def implementation(case: Case) -> str:
    """The name of the kernel that runs `case`; it goes into the rows."""
    if case.device == "cpu":
        return "torch-streamed"
    return "gluon-one-pass" if _hopper(case.head_dim, case.block_q) else "triton-two-pass"


def _hopper(head_dim: int, block: int) -> bool:
    """Whether pooled_hopper.py takes it."""
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
    return hopper and head_dim in (64, 128) and block in (64, 128)


def refuses(case: Case) -> str | None:
    """Why the kernel cannot run `case`, or None."""
    if case.q_heads % case.kv_heads:
        return f"{case.q_heads} query heads do not split over {case.kv_heads} key/value heads"
    if case.block_q != case.block_k:
        return f"the pooled map has square blocks, not {case.block_q} x {case.block_k}"
    if case.device == "cpu":
        return None
    if case.block_q not in (32, 64, 128):
        return f"the pooled kernel takes blocks of 32, 64 or 128, not {case.block_q}"
    return block_sparse_attention.refuses(case)


def pooled_attention(q: Tensor, k: Tensor, v: Tensor, block: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, Hq, N, D], k and v [B, Hk, N, D] -> (o, lse, d), causal and dense. Forward only.

    o [B, Hq, N, D] and d [B, Hq, n, n] in q's dtype, lse [B, Hq, N] in fp32; n = ceil(N / block).
    """
    if not q.is_cuda:
        return streamed(q, k, v, block)
    if _hopper(q.shape[-1], block):
        from seerbench.kernels import pooled_hopper

        return pooled_hopper.pooled_attention(q, k, v, block)
    return two_passes(q, k, v, block)


def two_passes(q: Tensor, k: Tensor, v: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same on any GPU: the forward, then the map."""
    # The forward's own tiles are 128 x 128 (the fastest), whatever blocks the map has.
    batch, heads, n, _ = q.shape
    full = full_mask(batch, heads, n, 128, q.device)
    o, lse = block_sparse_attention.block_sparse_attention_with_lse(q, k, v, full)
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


def naive_pooled_attention(
    q: Tensor, k: Tensor, v: Tensor, block: int = 64, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """By definition, the whole map in memory: O(N^2). Figure 8's naive form; the oracle with float64.

    Computes and returns in `dtype`, by default q's.
    """
    n, heads, dtype = q.shape[2], q.shape[1], dtype or q.dtype
    q, k, v = q.to(dtype), repeat_kv(k, heads).to(dtype), repeat_kv(v, heads).to(dtype)
    future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(future, -torch.inf)
    weights = scores.softmax(-1)
    # 0 is the smallest a probability can be, so that padding the tail with it changes no maximum.
    tail = block_count(n, block) * block - n
    tiles = F.pad(weights, (0, tail, 0, tail)).unflatten(-1, (-1, block)).unflatten(-3, (-1, block))
    return weights @ v, scores.logsumexp(-1), tiles.amax((-3, -1))


@torch.no_grad()
def streamed(q: Tensor, k: Tensor, v: Tensor, block: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """The same, one row of query blocks at a time, so that only a [block, N] strip of P exists at once."""
    batch, heads, n, _ = q.shape
    kv_heads, blocks = k.shape[1], block_count(n, block)
    given, dtype = q.dtype, torch.promote_types(q.dtype, torch.float32)
    # The query heads of a group side by side: one product a key/value head, and K is never repeated.
    q = (q.to(dtype) * q.shape[-1] ** -0.5).unflatten(1, (kv_heads, -1))  # [B, Hk, g, N, D]
    k, v = k.to(dtype), v.to(dtype)
    o = torch.empty(batch, heads, n, v.shape[-1], dtype=dtype, device=q.device)
    lse = torch.empty(batch, heads, n, dtype=dtype, device=q.device)
    d = torch.zeros(batch, heads, blocks, blocks, dtype=dtype, device=q.device)
    for i in range(blocks):
        start, end = i * block, min((i + 1) * block, n)
        rows = q[..., start:end, :]  # [B, Hk, g, rows, D]
        scores = (rows.flatten(2, 3) @ k[:, :, :end].transpose(-1, -2)).view(*rows.shape[:-1], end)
        future = torch.ones(end - start, end - start, dtype=torch.bool, device=q.device).triu(1)
        scores[..., start:].masked_fill_(future, -torch.inf)
        row_lse = scores.logsumexp(-1, keepdim=True)
        weights = scores.sub_(row_lse).exp_()
        lse[:, :, start:end] = row_lse.flatten(1, 2).squeeze(-1)
        o[:, :, start:end] = (weights.flatten(2, 3) @ v[:, :, :end]).view(batch, heads, end - start, -1)
        columns = F.pad(weights.amax(-2).flatten(1, 2), (0, (i + 1) * block - end))  # [B, Hq, (i+1) block]
        d[:, :, i, : i + 1] = columns.unflatten(-1, (i + 1, block)).amax(-1)
    return o.to(given), lse, d.to(given)
