"""Attention over tiles at any token offset plus gathered columns: MInference's vertical-slash mask.

    O[i] = sum_{j seen by i} softmax_j(q_i . k_j / sqrt(D)) v_j,
    seen = (j lies in a tile of i's row of queries and j <= i) or j is one of that row's columns

Paper   MInference (arXiv:2407.02490), section 3 and algorithm 2.
Oracle  seerbench.core.reference.reference_attention with the plan's `to_token_mask`, float64.
Here    CPU: `_gathered`, row by row over the keys that are read, in plain torch.
        GPU: `_forward`, Triton. Tiles start at arbitrary tokens, so that a diagonal of width one costs one
        tile a row and not the two that it would touch on a grid of blocks.

What the GPU kernel does: one program owns a row of 64 queries of one head. It walks the row's tiles as
block_sparse_attention.py does (tiles ascend; only the last two can cross the diagonal and compare
positions), then its columns, 64 gathered keys at a time. Columns lie before the row's first query and need no
comparison. One online softmax runs through all of it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seerbench.core.problem import AttentionProblem
from seerbench.kernels.vertical_slash.tile_mask import TileMask

LOG2_E = 1.4426950408889634
LOWEST = tl.constexpr(-1.0e30)  # finite: a row whose first tile is masked computes exp2(-inf - LOWEST) = 0


def implementation(case: AttentionProblem) -> str:
    """The name of the kernel that runs `case`; it goes into the rows."""
    return "torch-gathered" if case.device == "cpu" else "triton-tiles"


def refuses(case: AttentionProblem) -> str | None:
    """Why the kernel cannot run `case`, or None."""
    if case.q_heads % case.kv_heads:
        return f"{case.q_heads} query heads do not split over {case.kv_heads} key/value heads"
    if case.device == "cpu":
        return None
    if case.dtype not in ("float16", "bfloat16"):
        return f"the Triton kernel takes float16 and bfloat16, not {case.dtype}"
    if case.head_dim not in (16, 32, 64, 128):
        return f"the Triton kernel takes head_dim 16, 32, 64 or 128, not {case.head_dim}"
    if case.block_q not in (16, 32, 64):
        return f"the Triton kernel takes tiles of 16, 32 or 64, not {case.block_q}"
    return None


def tile_attention(q: Tensor, k: Tensor, v: Tensor, mask: TileMask) -> Tensor:
    """q [B, Hq, N, D], k and v [B, Hk, N, D] -> [B, Hq, N, D] in q's dtype. Forward only."""
    if not q.is_cuda:
        return _gathered(q, k, v, mask)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    o = torch.empty_like(q)
    launch(q, k, v, mask, o)
    return o


def _gathered(q: Tensor, k: Tensor, v: Tensor, mask: TileMask) -> Tensor:
    """Row by row: gather the keys that any head reads there, mask, softmax. Skips what no head reads."""
    _, heads, tokens, head_dim = q.shape
    group, tile = heads // k.shape[1], mask.tile
    q = q.unflatten(1, (-1, group))
    out = torch.empty_like(q)
    keys = mask.rows_of_keys()[..., :tokens].unflatten(1, (-1, group))
    for m in range(mask.tile_counts.shape[-1]):
        rows = torch.arange(m * tile, min((m + 1) * tile, tokens))
        wanted = keys[..., m, :]  # [B, Hk, group, N]
        index = wanted.any(0).any(0).any(0).nonzero()[:, 0]
        hidden = ~wanted[..., None, index] | (index > rows[:, None])
        scores = q[..., rows, :] @ k[:, :, None, index].mT * head_dim**-0.5
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out[..., rows, :] = weights @ v[:, :, None, index]
    return out.flatten(1, 2)


def launch(q: Tensor, k: Tensor, v: Tensor, mask: TileMask, o: Tensor) -> None:
    """Run `_forward` into o."""
    (batch, heads, n, head_dim), kv_heads = q.shape, k.shape[1]
    rows = mask.tile_counts.shape[-1]
    _forward[(rows * heads * batch,)](
        q, k, v, o, mask.tile_counts, mask.tile_starts, mask.column_counts, mask.columns,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *o.stride()[:3],
        n, heads, heads // kv_heads, rows, mask.tile_starts.shape[-1], mask.columns.shape[-1],
        head_dim**-0.5 * LOG2_E, HEAD_DIM=head_dim, TILE=mask.tile, num_warps=4, num_stages=3,
    )  # fmt: skip


# Unspecialised: otherwise a length or width divisible by 16, or equal to 1, would be another kernel.
@triton.jit(do_not_specialize=["n", "heads", "group", "rows", "tile_width", "column_width"])
def _forward(
    q_ptr, k_ptr, v_ptr, o_ptr, tile_counts_ptr, starts_ptr, column_counts_ptr, columns_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n,  # strides
    n, heads, group, rows, tile_width, column_width, scale,
    HEAD_DIM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # The query heads of a group side by side, rows from the longest to the shortest: see block_sparse_attention.
    pid = tl.program_id(0)
    kv, rest = pid // (group * rows), pid % (group * rows)
    i = rows - 1 - rest // group
    kv_heads = heads // group
    batch, head = kv // kv_heads, (kv % kv_heads) * group + rest % group

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
    crossing = 0  # disjoint tiles: at most two hold a key after the row's first query
    for back in tl.static_range(1, 3):
        start = tl.load(starts + tiles - back, mask=back <= tiles, other=-TILE)
        crossing += (start + TILE - 1 > i * TILE).to(tl.int32)

    m = tl.full([TILE], LOWEST, tl.float32)
    l = tl.zeros([TILE], tl.float32)  # noqa: E741
    acc = tl.zeros([TILE, HEAD_DIM], tl.float32)
    for t in range(tiles - crossing):
        at = tl.load(starts + t).to(tl.int64)
        k = tl.load(k_base + at * k_n + local[None, :] * k_n + dims[:, None])
        v = tl.load(v_base + at * v_n + local[:, None] * v_n + dims[None, :])
        s = tl.dot(q, k, input_precision="ieee")
        m, l, acc = _update(s, v, scale, m, l, acc)  # noqa: E741
    for t in range(tiles - crossing, tiles):
        at = tl.load(starts + t)
        offs_n = at + local
        at = at.to(tl.int64)
        k_ptrs = k_base + at * k_n + local[None, :] * k_n + dims[:, None]
        k = tl.load(k_ptrs, mask=offs_n[None, :] < n, other=0.0)
        v = tl.load(v_base + at * v_n + local[:, None] * v_n + dims[None, :], mask=offs_n[:, None] < n, other=0.0)
        s = tl.dot(q, k, input_precision="ieee")
        s = tl.where(offs_m[:, None] >= offs_n[None, :], s, -float("inf"))
        m, l, acc = _update(s, v, scale, m, l, acc)  # noqa: E741
    count = tl.load(column_counts_ptr + row)
    for first in range(0, count, TILE):
        real = first + local < count
        columns = tl.load(columns_ptr + row * column_width + first + local, mask=real, other=0).to(tl.int64)
        k = tl.load(k_base + columns[None, :] * k_n + dims[:, None])
        v = tl.load(v_base + columns[:, None] * v_n + dims[None, :])
        s = tl.dot(q, k, input_precision="ieee")
        s = tl.where(real[None, :], s, -float("inf"))
        m, l, acc = _update(s, v, scale, m, l, acc)  # noqa: E741

    o_base = o_ptr + batch.to(tl.int64) * o_b + head.to(tl.int64) * o_h + (i * TILE).to(tl.int64) * o_n
    out = (acc / l[:, None]).to(o_ptr.dtype.element_ty)
    tl.store(o_base + local[:, None] * o_n + dims[None, :], out, mask=offs_m[:, None] < n)


@triton.jit
def _update(s, v, scale, m, l, acc):  # noqa: E741
    """One step of the online softmax, base 2."""
    m_new = tl.maximum(m, tl.max(s, 1) * scale)
    p = tl.exp2(s * scale - m_new[:, None])
    shrink = tl.exp2(m - m_new)
    l = l * shrink + tl.sum(p, 1)  # noqa: E741
    return m_new, l, tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
