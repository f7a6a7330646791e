"""score."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seerbench.core.block_mask import block_count
from seerbench.kernels.primitives import _vector

# Chosen by measurement: docs/LOG.md.
SCORE_TILE = 64  # side of the tile of scores that a program computes; `select` reads to the end of the diagonal's


def block_scores(q: Tensor, k: Tensor, whole: bool = True) -> Tensor:
    """q [B, Hq, n, D], k [B, Hq or Hk, n, D], one dtype -> fp32 scores [B, Hq, n, n], -inf above the diagonal.

    whole=False: beyond the diagonal's tile (SCORE_TILE) a row is left as the allocator found it, half the bytes
    to write. Only the select functions here may read such scores.
    """
    batch, heads, n, head_dim = q.shape
    q, k = q.contiguous(), k.contiguous()
    scores = torch.empty(batch, heads, n, n, dtype=torch.float32, device=q.device)
    tiles = block_count(n, SCORE_TILE)
    # Half of the square: the first row of tiles goes with the last, and so on.
    grid = (tiles, tiles) if whole else (tiles + 1, (tiles + 1) // 2)
    _score[(*grid, batch * heads)](
        q, k, scores, n, tiles, heads // k.shape[1], head_dim**-0.5,
        HEAD_DIM=head_dim, TILE=SCORE_TILE, WHOLE=whole, VECTOR=_vector(n), num_warps=4,
    )  # fmt: skip
    return scores


@triton.jit(do_not_specialize=["n", "tiles", "group"])
def _score(
    q_ptr, k_ptr, scores_ptr, n, tiles, group, scale,
    HEAD_DIM: tl.constexpr, TILE: tl.constexpr, WHOLE: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    i, j, row = tl.program_id(1), tl.program_id(0), tl.program_id(2).to(tl.int64)
    if not WHOLE:  # rows i and tiles - 1 - i have tiles + 1 tiles together; an odd middle row comes twice
        second = j > i
        j = tl.where(second, j - i - 1, j)
        i = tl.where(second, tiles - 1 - i, i)
    local = tl.arange(0, TILE)
    dims = tl.arange(0, HEAD_DIM)
    offs_m = i * TILE + local
    offs_n = j * TILE + local
    s = tl.full([TILE, TILE], -float("inf"), tl.float32)
    if j <= i:
        q_base = q_ptr + row * n * HEAD_DIM
        k_base = k_ptr + row // group * n * HEAD_DIM  # heads are a multiple of the group: right for any batch
        q = tl.load(q_base + offs_m[:, None] * HEAD_DIM + dims[None, :], mask=offs_m[:, None] < n, other=0.0)
        k = tl.load(k_base + offs_n[None, :] * HEAD_DIM + dims[:, None], mask=offs_n[None, :] < n, other=0.0)
        s = tl.dot(q, k, input_precision="ieee") * scale
        s = tl.where(offs_m[:, None] >= offs_n[None, :], s, -float("inf"))
    inside = (offs_m[:, None] < n) & (offs_n // VECTOR * VECTOR < n)[None, :]
    at = tl.multiple_of((row * n + offs_m) * n, VECTOR)
    tl.store(scores_ptr + at[:, None] + offs_n[None, :], s, mask=inside)
