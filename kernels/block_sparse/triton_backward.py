"""Gradients of block-sparse attention, for training a model and its gates jointly on a GPU.

With s_ij = q_i . k_j / sqrt(D) over the pairs seen (listed block and j <= i), L the forward's log-sum-exp:

    P_ij = exp(s_ij - L_i)                   recomputed, never stored
    dV_j = sum_i P_ij dO_i
    delta_i = dO_i . O_i                     = sum_j P_ij dP_ij, computed without P
    dS_ij = P_ij (dO_i . v_j - delta_i)
    dQ_i = sum_j dS_ij k_j / sqrt(D)         dK_j = sum_i dS_ij q_i / sqrt(D)

Paper   FlashAttention-2 (arXiv:2307.08691), Algorithm 2, over the blocks of the mask only.
Oracle  autograd through seerbench.core.reference.reference_attention in float64.
Here    two Triton kernels (Ampere and later) without atomics, so every run gives the same bits:
        `_query_gradient`  a program owns query rows and loops over their list of key blocks, as the forward does;
        `_key_gradients`   a program owns keys of one key/value head and loops over the transposed list: the query
                           blocks of all heads of the group that read them. The sum over the group then needs no
                           second pass.
        Both compute S and dP: 7 matrix products per tile, where FlashAttention-2 needs 5 and adds to dQ by
        atomics. The mask is a constant: gates learn from their own loss.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seerbench.core.block_mask import BlockMask, block_count
from seerbench.errors import KernelError
from seerbench.kernels.block_sparse.triton import diagonal_blocks, flat_lists
from seerbench.kernels.primitives import LOG2_E, addressable, program_order


def gradients(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, do: Tensor, mask: BlockMask
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (dq, dk, dv), each with the shape, dtype and strides of q [B, Hq, N, D], k and v [B, Hk, N, D].

    o [B, Hq, N, D] and lse [B, Hq, N]: the forward's results; do: the gradient of o. Queries without a key and keys
    without a reader get zeros. Raises KernelError for blocks that have no backward kernel.
    """
    if (mask.block_q, mask.block_k) not in QUERY_TILES:
        raise KernelError(
            f"the backward kernels take blocks {sorted(QUERY_TILES)}, not {mask.block_q} x {mask.block_k}"
        )
    q, k, v, o, do = map(addressable, (q, k, v, o, do))
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    launch(q, k, v, o, lse, do, mask, dq, dk, dv)
    return dq, dk, dv


# (block_q, block_k) -> tile of each kernel: query rows, keys, warps, pipeline stages. Measured in docs/LOG.md at
# 32k tokens and 90% sparsity; blocks of 64 x 128 and 128 x 64 take the nearest measured tile.
QUERY_TILES = {
    (64, 64): (64, 64, 4, 2),  # 96 KiB: two programs per multiprocessor; with 3 stages one, 1.7 times slower
    (64, 128): (64, 64, 4, 2),
    (128, 64): (128, 64, 8, 2),
    (128, 128): (128, 128, 8, 2),  # 2.6 ms; 64 keys take 3.5
}
KEY_TILES = {
    (64, 64): (64, 64, 4, 2),
    (64, 128): (64, 128, 8, 2),
    (128, 64): (64, 64, 4, 2),
    (128, 128): (64, 128, 8, 3),  # 4.6 ms; 2 stages take 4.9, 128 rows 5.2
}


def launch(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, do: Tensor, mask: BlockMask,
    dq: Tensor, dk: Tensor, dv: Tensor,
    query_tile: tuple[int, ...] | None = None, key_tile: tuple[int, ...] | None = None,
) -> None:  # fmt: skip
    """Run both kernels into dq, dk and dv. Tiles override QUERY_TILES and KEY_TILES, for tools/ladder.py."""
    # In base 2, and +inf in a row that sees no key: its P is then exp2(-inf) = 0 without another test.
    lse = torch.where(lse == -torch.inf, torch.inf, lse * LOG2_E.value)
    delta = torch.empty_like(lse)
    launch_query_gradient(q, k, v, o, lse, do, mask, delta, dq, query_tile)
    launch_key_gradients(q, k, v, lse, do, delta, mask, dk, dv, key_tile)


def launch_query_gradient(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, do: Tensor, mask: BlockMask,
    delta: Tensor, dq: Tensor, tile: tuple[int, ...] | None = None,
) -> None:  # fmt: skip
    """Run `_query_gradient` into dq and delta; lse in base 2, +inf in a row that sees no key."""
    (batch, heads, n, head_dim), group = q.shape, q.shape[1] // k.shape[1]
    rows, keys, warps, stages = tile or QUERY_TILES[mask.block_q, mask.block_k]
    counts, indices, width = flat_lists(mask)
    _query_gradient[(block_count(n, rows) * heads * batch,)](
        q, k, v, o, lse, do, delta, dq, counts, indices,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *o.stride()[:3], *do.stride()[:3], *dq.stride()[:3],
        n, heads, group, counts.shape[-1], width, head_dim**-0.5,
        HEAD_DIM=head_dim, BLOCK_Q=mask.block_q, BLOCK_K=mask.block_k, ROWS=rows, KEYS=keys,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip


def launch_key_gradients(
    q: Tensor, k: Tensor, v: Tensor, lse: Tensor, do: Tensor, delta: Tensor, mask: BlockMask,
    dk: Tensor, dv: Tensor, tile: tuple[int, ...] | None = None, lists: tuple[Tensor, Tensor] | None = None,
) -> None:  # fmt: skip
    """Run `_key_gradients` into dk and dv; lists: `mask.transposed(kv_heads)`, where the caller has it already."""
    (batch, heads, n, head_dim), kv_heads = q.shape, k.shape[1]
    rows, keys, warps, stages = tile or KEY_TILES[mask.block_q, mask.block_k]
    offsets, readers = lists or mask.transposed(kv_heads)
    _key_gradients[(block_count(n, keys) * kv_heads * batch,)](
        q, k, v, lse, do, delta, dk, dv, offsets, readers,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *do.stride()[:3], *dk.stride()[:3], *dv.stride()[:3],
        n, heads, heads // kv_heads, offsets.shape[-1], head_dim**-0.5,
        HEAD_DIM=head_dim, BLOCK_Q=mask.block_q, BLOCK_K=mask.block_k, ROWS=rows, KEYS=keys,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip


# Sizes are not specialised: a length or width divisible by 16, or equal to 1, would compile another kernel.
@triton.jit(do_not_specialize=["n", "heads", "group", "mask_rows", "width"])
def _query_gradient(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, do_ptr, delta_ptr, dq_ptr, counts_ptr, indices_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n, do_b, do_h, do_n, dq_b, dq_h, dq_n,  # strides
    n, heads, group, mask_rows, width, scale,
    HEAD_DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Compute dQ and delta of a tile of query rows, in the order of programs of the forward."""
    batch, head, tile = program_order(tl.program_id(0), tl.cdiv(n, ROWS), heads, group)
    batch, head = batch.to(tl.int64), head.to(tl.int64)
    row = batch * heads + head

    local = tl.arange(0, ROWS)
    offs_m = tile * ROWS + local
    offs_d = tl.arange(0, HEAD_DIM)
    in_range = offs_m[:, None] < n
    first = (tile * ROWS).to(tl.int64)
    q_base = q_ptr + batch * q_b + head * q_h + first * q_n
    o_base = o_ptr + batch * o_b + head * o_h + first * o_n
    do_base = do_ptr + batch * do_b + head * do_h + first * do_n
    q = tl.load(q_base + local[:, None] * q_n + offs_d[None, :], mask=in_range, other=0.0)
    o = tl.load(o_base + local[:, None] * o_n + offs_d[None, :], mask=in_range, other=0.0)
    do = tl.load(do_base + local[:, None] * do_n + offs_d[None, :], mask=in_range, other=0.0)
    lse = tl.load(lse_ptr + row * n + offs_m, mask=offs_m < n, other=float("inf"))
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta_ptr + row * n + offs_m, delta, mask=offs_m < n)
    k_base = k_ptr + batch * k_b + (head // group) * k_h
    v_base = v_ptr + batch * v_b + (head // group) * v_h

    mask_row = row * mask_rows + tile * ROWS // BLOCK_Q
    count = tl.load(counts_ptr + mask_row)
    list_ptr = indices_ptr + mask_row * width
    diagonal = diagonal_blocks(list_ptr, count, tile * ROWS, ROWS, BLOCK_K)

    dq = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    SPLIT: tl.constexpr = BLOCK_K // KEYS  # tiles per key block
    dq = _loop_over_keys(
        q, do, lse, delta, k_base, v_base, k_n, v_n, list_ptr, 0, (count - diagonal) * SPLIT,
        offs_m, n, scale, dq, HEAD_DIM, BLOCK_K, KEYS, False,
    )  # fmt: skip
    dq = _loop_over_keys(
        q, do, lse, delta, k_base, v_base, k_n, v_n, list_ptr, (count - diagonal) * SPLIT, count * SPLIT,
        offs_m, n, scale, dq, HEAD_DIM, BLOCK_K, KEYS, True,
    )  # fmt: skip
    dq_base = dq_ptr + batch * dq_b + head * dq_h + first * dq_n
    out = (dq * scale).to(dq_ptr.dtype.element_ty)
    tl.store(dq_base + local[:, None] * dq_n + offs_d[None, :], out, mask=in_range)


@triton.jit
def _loop_over_keys(
    q, do, lse, delta, k_base, v_base, k_n, v_n, list_ptr, first, last, offs_m, n, scale, dq,
    HEAD_DIM: tl.constexpr, BLOCK_K: tl.constexpr, KEYS: tl.constexpr, DIAGONAL: tl.constexpr,
):  # fmt: skip
    """Add the tiles first .. last - 1 of a list of key blocks to dQ; if DIAGONAL, mask keys after the query."""
    SPLIT: tl.constexpr = BLOCK_K // KEYS
    offs_d = tl.arange(0, HEAD_DIM)
    local = tl.arange(0, KEYS)
    for t in range(first, last):
        start = tl.load(list_ptr + t // SPLIT) * BLOCK_K + t % SPLIT * KEYS
        offs_n = start + local
        # Only the tile's start needs 64 bits (a [B, N, H, D] tensor of 1M tokens overflows 32).
        k_ptrs = k_base + start.to(tl.int64) * k_n + local[:, None] * k_n + offs_d[None, :]
        v_ptrs = v_base + start.to(tl.int64) * v_n + local[:, None] * v_n + offs_d[None, :]
        if DIAGONAL:  # the tail block, which may be partial, always crosses
            k = tl.load(k_ptrs, mask=offs_n[:, None] < n, other=0.0)
            v = tl.load(v_ptrs, mask=offs_n[:, None] < n, other=0.0)
        else:
            k = tl.load(k_ptrs)
            v = tl.load(v_ptrs)
        # [ROWS, KEYS]
        z = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E) - lse[:, None]
        if DIAGONAL:
            z = tl.where(offs_m[:, None] >= offs_n[None, :], z, -float("inf"))
        dp = tl.dot(do, tl.trans(v), input_precision="ieee")
        ds = tl.exp2(z) * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    return dq


@triton.jit(do_not_specialize=["n", "heads", "group", "columns"])
def _key_gradients(
    q_ptr, k_ptr, v_ptr, lse_ptr, do_ptr, delta_ptr, dk_ptr, dv_ptr, offsets_ptr, readers_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, do_b, do_h, do_n, dk_b, dk_h, dk_n, dv_b, dv_h, dv_n,  # strides
    n, heads, group, columns, scale,
    HEAD_DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Compute dK and dV of a tile of keys. The first keys, which have the most readers, come first."""
    pid = tl.program_id(0)
    tiles = tl.cdiv(n, KEYS)
    kv, tile = pid // tiles, pid % tiles
    kv_heads = heads // group
    batch, kv_head = (kv // kv_heads).to(tl.int64), (kv % kv_heads).to(tl.int64)

    local = tl.arange(0, KEYS)
    offs_n = tile * KEYS + local
    offs_d = tl.arange(0, HEAD_DIM)
    in_range = offs_n[:, None] < n
    first_key = (tile * KEYS).to(tl.int64)
    k_base = k_ptr + batch * k_b + kv_head * k_h + first_key * k_n
    v_base = v_ptr + batch * v_b + kv_head * v_h + first_key * v_n
    k = tl.load(k_base + local[:, None] * k_n + offs_d[None, :], mask=in_range, other=0.0)
    v = tl.load(v_base + local[:, None] * v_n + offs_d[None, :], mask=in_range, other=0.0)
    q_base = q_ptr + batch * q_b + kv_head * group * q_h
    do_base = do_ptr + batch * do_b + kv_head * group * do_h
    row_base = (batch * heads + kv_head * group) * n  # of lse and delta

    offsets_ptr += kv * columns + tile * KEYS // BLOCK_K
    first, last = tl.load(offsets_ptr), tl.load(offsets_ptr + 1)
    # Query blocks that begin before this tile's last key cross the diagonal; they begin the list.
    DIAGONAL_BLOCKS: tl.constexpr = (BLOCK_K + BLOCK_Q - 1) // BLOCK_Q
    diagonal = 0
    for t in range(first, tl.minimum(first + group * DIAGONAL_BLOCKS, last)):
        block = tl.load(readers_ptr + t) // group
        diagonal += (block * BLOCK_Q < tile * KEYS + KEYS - 1).to(tl.int32)

    dk = tl.zeros([KEYS, HEAD_DIM], tl.float32)
    dv = tl.zeros([KEYS, HEAD_DIM], tl.float32)
    SPLIT: tl.constexpr = BLOCK_Q // ROWS  # tiles per query block
    dk, dv = _loop_over_queries(
        k, v, q_base, do_base, lse_ptr + row_base, delta_ptr + row_base, q_h, q_n, do_h, do_n, readers_ptr,
        first * SPLIT, (first + diagonal) * SPLIT, offs_n, n, group, scale, dk, dv,
        HEAD_DIM, BLOCK_Q, ROWS, True,
    )  # fmt: skip
    dk, dv = _loop_over_queries(
        k, v, q_base, do_base, lse_ptr + row_base, delta_ptr + row_base, q_h, q_n, do_h, do_n, readers_ptr,
        (first + diagonal) * SPLIT, last * SPLIT, offs_n, n, group, scale, dk, dv,
        HEAD_DIM, BLOCK_Q, ROWS, False,
    )  # fmt: skip
    dk_base = dk_ptr + batch * dk_b + kv_head * dk_h + first_key * dk_n
    dv_base = dv_ptr + batch * dv_b + kv_head * dv_h + first_key * dv_n
    dk = (dk * scale).to(dk_ptr.dtype.element_ty)
    tl.store(dk_base + local[:, None] * dk_n + offs_d[None, :], dk, mask=in_range)
    tl.store(dv_base + local[:, None] * dv_n + offs_d[None, :], dv.to(dv_ptr.dtype.element_ty), mask=in_range)


@triton.jit
def _loop_over_queries(
    k, v, q_base, do_base, lse_base, delta_base, q_h, q_n, do_h, do_n, readers_ptr,
    first, last, offs_n, n, group, scale, dk, dv,
    HEAD_DIM: tl.constexpr, BLOCK_Q: tl.constexpr, ROWS: tl.constexpr, DIAGONAL: tl.constexpr,
):  # fmt: skip
    """Add the tiles first .. last - 1 of a list of readers to dK, dV; if DIAGONAL, mask keys after the query.

    Scores are transposed, [KEYS, ROWS]: P and dS are then left operands of the products and stay in registers.
    """
    SPLIT: tl.constexpr = BLOCK_Q // ROWS
    offs_d = tl.arange(0, HEAD_DIM)
    local = tl.arange(0, ROWS)
    for t in range(first, last):
        reader = tl.load(readers_ptr + t // SPLIT)
        member = (reader % group).to(tl.int64)
        start = reader // group * BLOCK_Q + t % SPLIT * ROWS
        offs_m = start + local
        inside = offs_m < n
        q_ptrs = q_base + member * q_h + start.to(tl.int64) * q_n + local[:, None] * q_n + offs_d[None, :]
        do_ptrs = do_base + member * do_h + start.to(tl.int64) * do_n + local[:, None] * do_n + offs_d[None, :]
        q = tl.load(q_ptrs, mask=inside[:, None], other=0.0)
        do = tl.load(do_ptrs, mask=inside[:, None], other=0.0)
        # A row past the end has a probability of exp2(-inf) everywhere.
        lse = tl.load(lse_base + member * n + offs_m, mask=inside, other=float("inf"))
        delta = tl.load(delta_base + member * n + offs_m, mask=inside, other=0.0)
        # [KEYS, ROWS]
        z = tl.dot(k, tl.trans(q), input_precision="ieee") * (scale * LOG2_E) - lse[None, :]
        if DIAGONAL:
            z = tl.where(offs_m[None, :] >= offs_n[:, None], z, -float("inf"))
        p = tl.exp2(z)
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision="ieee")
        dp = tl.dot(v, tl.trans(do), input_precision="ieee")
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
    return dk, dv
