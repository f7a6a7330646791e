"""The attention mass of each block, estimated from sums along antidiagonals: XAttention's score.

    s_ij = sum_a q[S i + S - 1 - a] . k[S j + a] / (sqrt(D) S),  j <= i          (a = 0 .. S - 1, S the stride)
    M[I, J] = sum over i in block I, j in block J of softmax_j(s_ij)

Paper   XAttention (arXiv:2503.16428), section 2; baselines/xattention.py makes its block mask of it.
Oracle  `baselines.xattention.antidiagonal_mass` in torch, by chunks of the N/S x N/S scores.
GPU     one program a tile of strided rows of one head, two walks over the strided keys: the first finds each row's
        log-sum-exp, the second adds up what each block gets. Scores stay in registers; q and k are read where
        they lie, every S-th row S times, and never rearranged.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seerbench.core.block_mask import block_count

ROWS, KEYS = 128, 64  # strided, of a tile: 8 warps, 48 KiB of q and k a stage at head_dim 128


def antidiagonal_mass(q: Tensor, k: Tensor, block: int, stride: int) -> Tensor:
    """q [B, Hq, N, D], k [B, Hk, N, D] -> fp32 [B, Hq, n, n], zero above the diagonal."""
    batch, heads, tokens, head_dim = q.shape
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    n, width = block_count(tokens, block), block // stride
    if KEYS % width:
        raise ValueError(f"blocks of {block} at stride {stride} do not divide tiles of {KEYS} strided keys")
    mass = torch.zeros(batch, heads, n, n, dtype=torch.float32, device=q.device)
    _mass[(triton.cdiv(n * width, ROWS), heads, batch)](
        q, k, mass, *q.stride()[:3], *k.stride()[:3], tokens, n, heads // k.shape[1],
        head_dim**-0.5 / stride, HEAD_DIM=head_dim, STRIDE=stride, WIDTH=width, ROWS=ROWS, KEYS=KEYS,
        num_warps=8, num_stages=3,
    )  # fmt: skip
    return mass


@triton.jit
def _scores(
    q_base, k_base, q_n, k_n, rows, start, tokens, scale,
    HEAD_DIM: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """s of a tile, [ROWS, KEYS]; -inf where the key comes after the row."""
    keys = start + tl.arange(0, KEYS)
    dims = tl.arange(0, HEAD_DIM)
    s = tl.zeros([ROWS, KEYS], tl.float32)
    for a in range(STRIDE):
        at_q = rows * STRIDE + STRIDE - 1 - a
        at_k = keys * STRIDE + a
        q_ptrs = q_base + at_q.to(tl.int64)[:, None] * q_n + dims[None, :]
        k_ptrs = k_base + at_k.to(tl.int64)[None, :] * k_n + dims[:, None]
        q = tl.load(q_ptrs, mask=at_q[:, None] < tokens, other=0.0)
        k = tl.load(k_ptrs, mask=at_k[None, :] < tokens, other=0.0)
        s = tl.dot(q, k, s, input_precision="ieee")
    return tl.where(keys[None, :] <= rows[:, None], s * scale, -float("inf"))


@triton.jit(do_not_specialize=["tokens", "n", "group"])
def _mass(
    q_ptr, k_ptr, mass_ptr, q_b, q_h, q_n, k_b, k_h, k_n, tokens, n, group, scale,
    HEAD_DIM: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest first
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    q_base = q_ptr + batch * q_b + head.to(tl.int64) * q_h
    k_base = k_ptr + batch * k_b + (head // group).to(tl.int64) * k_h
    rows = tile * ROWS + tl.arange(0, ROWS)
    end = tl.minimum((tile + 1) * ROWS, tl.cdiv(tokens, STRIDE))

    m = tl.full([ROWS], -1.0e30, tl.float32)
    l = tl.zeros([ROWS], tl.float32)  # noqa: E741
    for start in range(0, end, KEYS):
        s = _scores(q_base, k_base, q_n, k_n, rows, start, tokens, scale, HEAD_DIM, STRIDE, ROWS, KEYS)
        m_new = tl.maximum(m, tl.max(s, 1))
        l = l * tl.exp(m - m_new) + tl.sum(tl.exp(s - m_new[:, None]), 1)  # noqa: E741
        m = m_new
    lse = m + tl.log(l)

    blocks_q: tl.constexpr = ROWS // WIDTH
    blocks_k: tl.constexpr = KEYS // WIDTH
    of_q = tile * blocks_q + tl.arange(0, blocks_q)
    out = mass_ptr + (batch * tl.num_programs(1) + head) * n * n
    for start in range(0, end, KEYS):
        s = _scores(q_base, k_base, q_n, k_n, rows, start, tokens, scale, HEAD_DIM, STRIDE, ROWS, KEYS)
        p = tl.where((rows * STRIDE < tokens)[:, None], tl.exp(s - lse[:, None]), 0.0)  # not the rows of padding
        sums = tl.sum(tl.sum(tl.reshape(p, [blocks_q, WIDTH, blocks_k, WIDTH]), 3), 1)
        of_k = start // WIDTH + tl.arange(0, blocks_k)
        inside = (of_q[:, None] < n) & (of_k[None, :] <= of_q[:, None])
        tl.store(out + of_q.to(tl.int64)[:, None] * n + of_k[None, :], sums, mask=inside)
