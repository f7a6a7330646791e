"""AttnGate's scores: Z[I, J] = <q_I, k_J> / sqrt(D) for J <= I, else -inf, in fp32.

Oracle  the same product in float64 torch. One program computes a tile of 64 x 64 scores.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seerbench.core.block_mask import block_count
from seerbench.kernels.primitives import vector_width

# Side of the tile of scores that a program computes, chosen by measurement (docs/LOG.md). select.py reads a row up
# to the end of the tile that the diagonal crosses.
SCORE_TILE = 64


def block_scores(q: Tensor, k: Tensor, upper_triangle: bool = True) -> Tensor:
    """Return fp32 scores [B, Hq, n, n] of q [B, Hq, n, D] and k [B, Hq or Hk, n, D], -inf above the diagonal.

    q and k have one dtype. upper_triangle=False leaves a row undefined beyond the tile that the diagonal crosses
    (SCORE_TILE), which halves the bytes written. Only select.py may read such scores.
    """
    batch, heads, n, head_dim = q.shape
    q, k = q.contiguous(), k.contiguous()
    scores = torch.empty(batch, heads, n, n, dtype=torch.float32, device=q.device)
    tiles = block_count(n, SCORE_TILE)
    # Tiles on and below the diagonal: row i of tiles shares a grid row with row tiles - 1 - i.
    grid = (tiles, tiles) if upper_triangle else (tiles + 1, (tiles + 1) // 2)
    _score[(*grid, batch * heads)](
        q, k, scores, n, tiles, heads // k.shape[1], head_dim**-0.5,
        HEAD_DIM=head_dim, TILE=SCORE_TILE, UPPER_TRIANGLE=upper_triangle, VECTOR=vector_width(n), num_warps=4,
    )  # fmt: skip
    return scores


@triton.jit(do_not_specialize=["n", "tiles", "group"])
def _score(
    q_ptr, k_ptr, scores_ptr, n, tiles, group, scale,
    HEAD_DIM: tl.constexpr, TILE: tl.constexpr, UPPER_TRIANGLE: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    i, j, row = tl.program_id(1), tl.program_id(0), tl.program_id(2).to(tl.int64)
    if not UPPER_TRIANGLE:  # rows i and tiles - 1 - i have tiles + 1 tiles together; a middle row runs twice
        second = j > i
        j = tl.where(second, j - i - 1, j)
        i = tl.where(second, tiles - 1 - i, i)
    local = tl.arange(0, TILE)
    dims = tl.arange(0, HEAD_DIM)
    offs_m = i * TILE + local
    offs_n = j * TILE + local
    s = tl.full([TILE, TILE], -float("inf"), tl.float32)  # [query blocks, key blocks]
    if j <= i:
        q_base = q_ptr + row * n * HEAD_DIM
        k_base = k_ptr + row // group * n * HEAD_DIM  # group divides the heads, so this is right for any batch
        q = tl.load(q_base + offs_m[:, None] * HEAD_DIM + dims[None, :], mask=offs_m[:, None] < n, other=0.0)
        k = tl.load(k_base + offs_n[None, :] * HEAD_DIM + dims[:, None], mask=offs_n[None, :] < n, other=0.0)
        s = tl.dot(q, k, input_precision="ieee") * scale
        s = tl.where(offs_m[:, None] >= offs_n[None, :], s, -float("inf"))
    inside = (offs_m[:, None] < n) & (offs_n // VECTOR * VECTOR < n)[None, :]
    at = tl.multiple_of((row * n + offs_m) * n, VECTOR)
    tl.store(scores_ptr + at[:, None] + offs_n[None, :], s, mask=inside)
