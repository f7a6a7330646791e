"""Estimate the attention mass of each block from sums along antidiagonals: XAttention's score.

    s_ij = sum_a q[S i + S - 1 - a] . k[S j + a] / (sqrt(D) S),  j <= i          (a = 0 .. S - 1, S the stride)
    M[I, J] = sum over i in block I, j in block J of softmax_j(s_ij)

Paper   XAttention (arXiv:2503.16428), section 2; baselines/xattention.py makes its block mask from it.
Oracle  `reference.antidiagonal_mass` in float64.
Here    one program per tile of strided rows of one head, with two loops over the strided keys: the first finds each
        row's log-sum-exp, the second adds up the mass of each block. Scores stay in registers. q and k are read
        from where they are, every S-th row S times, and never rearranged.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seerbench.core.block_mask import block_count
from seerbench.errors import KernelError
from seerbench.kernels.primitives import LOWEST, addressable

# Strided rows and keys of a tile. With 8 warps, one stage of q and k takes 48 KiB at head_dim 128, so 3 stages fit.
ROWS, KEYS = 128, 64


def antidiagonal_mass(q: Tensor, k: Tensor, block: int, stride: int) -> Tensor:
    """Return the mass of each block on a GPU: fp32 [B, Hq, n, n], zero above the diagonal, n = ceil(N / block).

    q [B, Hq, N, D], k [B, Hk, N, D]. Raises KernelError if block / stride does not divide KEYS.
    """
    batch, heads, tokens, head_dim = q.shape
    q, k = addressable(q), addressable(k)
    n, width = block_count(tokens, block), block // stride
    if KEYS % width:
        raise KernelError(f"blocks of {block} at stride {stride} do not divide tiles of {KEYS} strided keys")
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
    """Return s of a tile, [ROWS, KEYS]; -inf where the key comes after the row."""
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
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the tiles with the most keys first
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    q_base = q_ptr + batch * q_b + head.to(tl.int64) * q_h
    k_base = k_ptr + batch * k_b + (head // group).to(tl.int64) * k_h
    rows = tile * ROWS + tl.arange(0, ROWS)
    end = tl.minimum((tile + 1) * ROWS, tl.cdiv(tokens, STRIDE))

    row_max = tl.full([ROWS], LOWEST, tl.float32)
    row_sum = tl.zeros([ROWS], tl.float32)
    for start in range(0, end, KEYS):
        s = _scores(q_base, k_base, q_n, k_n, rows, start, tokens, scale, HEAD_DIM, STRIDE, ROWS, KEYS)
        new_max = tl.maximum(row_max, tl.max(s, 1))
        row_sum = row_sum * tl.exp(row_max - new_max) + tl.sum(tl.exp(s - new_max[:, None]), 1)
        row_max = new_max
    lse = row_max + tl.log(row_sum)

    blocks_q: tl.constexpr = ROWS // WIDTH
    blocks_k: tl.constexpr = KEYS // WIDTH
    of_q = tile * blocks_q + tl.arange(0, blocks_q)  # blocks of queries and, below, of keys
    out = mass_ptr + (batch * tl.num_programs(1) + head) * n * n
    for start in range(0, end, KEYS):
        s = _scores(q_base, k_base, q_n, k_n, rows, start, tokens, scale, HEAD_DIM, STRIDE, ROWS, KEYS)
        p = tl.where(
            (rows * STRIDE < tokens)[:, None], tl.exp(s - lse[:, None]), 0.0
        )  # rows of padding add no mass
        # [blocks_q, blocks_k]
        sums = tl.sum(tl.sum(tl.reshape(p, [blocks_q, WIDTH, blocks_k, WIDTH]), 3), 1)
        of_k = start // WIDTH + tl.arange(0, blocks_k)
        inside = (of_q[:, None] < n) & (of_k[None, :] <= of_q[:, None])
        tl.store(out + of_q.to(tl.int64)[:, None] * n + of_k[None, :], sums, mask=inside)
