"""Attention over tiles at any token offset plus gathered columns: MInference's vertical-slash mask.

    O[i] = sum_{j seen by i} softmax_j(q_i . k_j / sqrt(D)) v_j,
    seen = (j lies in a tile of i's row of queries and j <= i) or j is one of that row's columns

Paper   MInference (arXiv:2407.02490), section 3 and algorithm 2.
Oracle  seerbench.core.reference.reference_attention with the plan's `to_token_mask`, float64.
Here    `_forward`, portable Triton. Tiles start at any token, so a diagonal of width one costs one tile per row and
        not the two that it would touch on a grid of blocks. On a CPU, `reference.tile_attention` runs.

One program owns a row of 64 queries of one head. It loops over the row's tiles as block_sparse/triton.py does
(tiles ascend; only the last two can cross the diagonal and compare positions), then over its columns, 64 gathered
keys per step. Columns precede the row's first query and need no comparison. One online softmax runs through all of
it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from seerbench.kernels.primitives import LOWEST, base_2_scale, program_order, softmax_step
from seerbench.kernels.vertical_slash.tile_mask import TileMask


def launch(q: Tensor, k: Tensor, v: Tensor, mask: TileMask, o: Tensor) -> None:
    """Run `_forward` into o [B, Hq, N, D]."""
    (batch, heads, n, head_dim), kv_heads = q.shape, k.shape[1]
    rows = mask.tile_counts.shape[-1]
    _forward[(rows * heads * batch,)](
        q, k, v, o, mask.tile_counts, mask.tile_starts, mask.column_counts, mask.columns,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *o.stride()[:3],
        n, heads, heads // kv_heads, rows, mask.tile_starts.shape[-1], mask.columns.shape[-1],
        base_2_scale(head_dim), HEAD_DIM=head_dim, TILE=mask.tile, num_warps=4, num_stages=3,
    )  # fmt: skip


# Sizes are not specialised: a length or width divisible by 16, or equal to 1, would compile another kernel.
@triton.jit(do_not_specialize=["n", "heads", "group", "rows", "tile_width", "column_width"])
def _forward(
    q_ptr, k_ptr, v_ptr, o_ptr, tile_counts_ptr, starts_ptr, column_counts_ptr, columns_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n,  # strides over batch, heads and tokens
    n, heads, group, rows, tile_width, column_width, scale,
    HEAD_DIM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    batch, head, i = program_order(tl.program_id(0), rows, heads, group)

    local = tl.arange(0, TILE)
    dims = tl.arange(0, HEAD_DIM)
    offs_m = i * TILE + local
    q_base = q_ptr + batch.to(tl.int64) * q_b + head.to(tl.int64) * q_h + (i * TILE).to(tl.int64) * q_n
    q = tl.load(q_base + local[:, None] * q_n + dims[None, :], mask=offs_m[:, None] < n, other=0.0)
    k_base = k_ptr + batch.to(tl.int64) * k_b + (head // group).to(tl.int64) * k_h
    v_base = v_ptr + batch.to(tl.int64) * v_b + (head // group).to(tl.int64) * v_h

    row = (batch * heads + head).to(tl.int64) * rows + i
    tiles = tl.load(tile_counts_ptr + row)
    starts = starts_ptr + row * tile_width
    diagonal = 0  # tiles are disjoint: at most two hold a key after the row's first query
    for back in tl.static_range(1, 3):
        start = tl.load(starts + tiles - back, mask=back <= tiles, other=-TILE)
        diagonal += (start + TILE - 1 > i * TILE).to(tl.int32)

    row_max = tl.full([TILE], LOWEST, tl.float32)
    row_sum = tl.zeros([TILE], tl.float32)
    acc = tl.zeros([TILE, HEAD_DIM], tl.float32)
    for t in range(tiles - diagonal):
        at = tl.load(starts + t).to(tl.int64)
        k = tl.load(k_base + at * k_n + local[None, :] * k_n + dims[:, None])
        v = tl.load(v_base + at * v_n + local[:, None] * v_n + dims[None, :])
        s = tl.dot(q, k, input_precision="ieee")  # [TILE, TILE]
        row_max, row_sum, acc = _update(s, v, scale, row_max, row_sum, acc)
    for t in range(tiles - diagonal, tiles):
        at = tl.load(starts + t)
        offs_n = at + local
        at = at.to(tl.int64)
        k_ptrs = k_base + at * k_n + local[None, :] * k_n + dims[:, None]
        k = tl.load(k_ptrs, mask=offs_n[None, :] < n, other=0.0)
        v = tl.load(v_base + at * v_n + local[:, None] * v_n + dims[None, :], mask=offs_n[:, None] < n, other=0.0)
        s = tl.dot(q, k, input_precision="ieee")
        s = tl.where(offs_m[:, None] >= offs_n[None, :], s, -float("inf"))
        row_max, row_sum, acc = _update(s, v, scale, row_max, row_sum, acc)
    count = tl.load(column_counts_ptr + row)
    for first in range(0, count, TILE):
        real = first + local < count
        columns = tl.load(columns_ptr + row * column_width + first + local, mask=real, other=0).to(tl.int64)
        k = tl.load(k_base + columns[None, :] * k_n + dims[:, None])
        v = tl.load(v_base + columns[:, None] * v_n + dims[None, :])
        s = tl.dot(q, k, input_precision="ieee")
        s = tl.where(real[None, :], s, -float("inf"))
        row_max, row_sum, acc = _update(s, v, scale, row_max, row_sum, acc)

    o_base = o_ptr + batch.to(tl.int64) * o_b + head.to(tl.int64) * o_h + (i * TILE).to(tl.int64) * o_n
    out = (acc / row_sum[:, None]).to(o_ptr.dtype.element_ty)
    tl.store(o_base + local[:, None] * o_n + dims[None, :], out, mask=offs_m[:, None] < n)


@triton.jit
def _update(s, v, scale, row_max, row_sum, acc):
    """Take scores s [TILE, TILE] and their values into the online softmax and the output."""
    p, row_max, row_sum, alpha = softmax_step(s, row_max, row_sum, scale)
    return row_max, row_sum, tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision="ieee")
