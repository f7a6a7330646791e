"""Block-sparse FlashAttention: softmax attention over the key blocks that a BlockMask lists.

    O[i] = sum_{j seen by i} softmax_j(q_i . k_j / sqrt(D)) v_j,   seen = listed block and j <= i

Paper   SeerAttention (arXiv:2410.13276), section 3.3: a FlashAttention that visits the chosen blocks only.
Oracle  seerbench.core.reference.reference_attention, float64.
Here    `_forward`, portable Triton (Ampere and later). On Hopper, hopper.py computes the same from the same lists
        for most block sizes; on a CPU, FlexAttention does (kernels/flex_attention.py).

One program owns a tile of query rows of one head and loops over that row's list of key blocks. It keeps a running
maximum, a running sum and an unnormalised output (online softmax). Lists ascend, so only their last entries can
cross the diagonal. The loop is therefore split in two, and the first part, nearly all the work, has no mask and no
bounds check.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from seerbench.core.block_mask import BlockMask, block_count
from seerbench.kernels.primitives import LOG2_E, LOWEST, base_2_scale, program_order, softmax_step


def flat_lists(mask: BlockMask) -> tuple[Tensor, Tensor, int]:
    """Return (counts, indices, entries from one row's list to the next) as the kernels address them.

    Rows may share one list (an expanded view whose strides are zero): dense attention then needs n entries. Any
    other view, such as a mask of one head expanded to all, is copied.
    """
    indices = mask.kv_indices
    if not indices.shape[-1]:
        indices = indices.new_zeros(*indices.shape[:-1], 1)  # kernels read a first entry ahead
    shared = indices.stride(-1) == 1 and all(step == 0 for step in indices.stride()[:-1])
    if not shared:
        indices = indices.contiguous()
    return mask.kv_num_blocks.contiguous(), indices, 0 if shared else indices.shape[-1]


# (block_q, block_k) -> tile of the kernel: query rows, keys, warps, pipeline stages. They are fixed: with an
# autotuner the kernel behind a row of results would depend on the tuner's timings. Measured in docs/LOG.md.
TILES = {
    (32, 32): (32, 32, 2, 3),  # for accuracy at small blocks: too few rows for wgmma, and never tuned
    (64, 64): (64, 64, 4, 3),  # 113 KiB: two programs per multiprocessor; 2 stages are 1 to 4% slower
    (64, 128): (64, 64, 4, 3),  # as above: a block of 128 keys is taken in two steps
    (128, 64): (128, 64, 8, 3),  # 4 warps would spill 200 bytes of registers
    (128, 128): (128, 128, 8, 2),  # 10.7x FA-2 at 32k and 90%; 64 keys and 3 stages give 8.5x
}


def launch(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, o: Tensor, lse: Tensor, tile: tuple[int, ...] | None = None
) -> None:
    """Run `_forward` into o [B, Hq, N, D] and lse [B, Hq, N]. `tile` overrides TILES, for tools/ladder.py."""
    (batch, heads, n, head_dim), kv_heads = q.shape, k.shape[1]
    rows, keys, warps, stages = tile or TILES[mask.block_q, mask.block_k]
    counts, indices, width = flat_lists(mask)
    grid = (block_count(n, rows) * heads * batch,)
    _forward[grid](
        q, k, v, o, lse, counts, indices,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *o.stride()[:3],
        n, heads, heads // kv_heads, counts.shape[-1], width, base_2_scale(head_dim),
        HEAD_DIM=head_dim, BLOCK_Q=mask.block_q, BLOCK_K=mask.block_k, ROWS=rows, KEYS=keys,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip


# Sizes are not specialised: a length or width divisible by 16, or equal to 1, would compile another kernel.
@triton.jit(do_not_specialize=["n", "heads", "group", "mask_rows", "width"])
def _forward(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, counts_ptr, indices_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n,  # strides over batch, heads and tokens
    n, heads, group, mask_rows, width, scale,
    HEAD_DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    batch, head, tile = program_order(tl.program_id(0), tl.cdiv(n, ROWS), heads, group)
    row = (batch * heads + head).to(tl.int64)

    local = tl.arange(0, ROWS)
    offs_m = tile * ROWS + local  # [ROWS], query positions
    offs_d = tl.arange(0, HEAD_DIM)
    in_range = offs_m[:, None] < n
    first = (tile * ROWS).to(tl.int64)
    q_base = q_ptr + batch.to(tl.int64) * q_b + head.to(tl.int64) * q_h + first * q_n
    q = tl.load(q_base + local[:, None] * q_n + offs_d[None, :], mask=in_range, other=0.0)  # [ROWS, HEAD_DIM]
    k_base = k_ptr + batch.to(tl.int64) * k_b + (head // group).to(tl.int64) * k_h
    v_base = v_ptr + batch.to(tl.int64) * v_b + (head // group).to(tl.int64) * v_h

    mask_row = row * mask_rows + tile * ROWS // BLOCK_Q
    count = tl.load(counts_ptr + mask_row)
    list_ptr = indices_ptr + mask_row * width
    diagonal = diagonal_blocks(list_ptr, count, tile * ROWS, ROWS, BLOCK_K)

    row_max = tl.full([ROWS], LOWEST, tl.float32)
    row_sum = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    SPLIT: tl.constexpr = BLOCK_K // KEYS  # tiles per key block
    row_max, row_sum, acc = _inner_loop(
        q, k_base, v_base, k_n, v_n, list_ptr, 0, (count - diagonal) * SPLIT, offs_m, n, scale,
        row_max, row_sum, acc, HEAD_DIM, BLOCK_K, KEYS, False,
    )  # fmt: skip
    row_max, row_sum, acc = _inner_loop(
        q, k_base, v_base, k_n, v_n, list_ptr, (count - diagonal) * SPLIT, count * SPLIT, offs_m, n, scale,
        row_max, row_sum, acc, HEAD_DIM, BLOCK_K, KEYS, True,
    )  # fmt: skip

    seen = row_sum > 0  # a row without a key gets zeros, and a log-sum-exp of -inf
    row_sum = tl.where(seen, row_sum, 1.0)
    o_base = o_ptr + batch.to(tl.int64) * o_b + head.to(tl.int64) * o_h + first * o_n
    out = (acc / row_sum[:, None]).to(o_ptr.dtype.element_ty)
    tl.store(o_base + local[:, None] * o_n + offs_d[None, :], out, mask=in_range)
    lse = tl.where(seen, (row_max + tl.log2(row_sum)) / LOG2_E, -float("inf"))
    tl.store(lse_ptr + row * n + offs_m, lse, mask=offs_m < n)


@triton.jit
def diagonal_blocks(list_ptr, count, first_query, ROWS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Count the blocks at the end of an ascending list that hold a key after `first_query`.

    They cross the diagonal, and a tile of ROWS queries has at most ceil(ROWS / BLOCK_K) of them.
    """
    diagonal = 0
    for back in tl.static_range(1, (ROWS + BLOCK_K - 1) // BLOCK_K + 1):
        block = tl.load(list_ptr + count - back, mask=back <= count, other=-1)
        diagonal += (block * BLOCK_K + BLOCK_K - 1 > first_query).to(tl.int32)
    return diagonal


@triton.jit
def _inner_loop(
    q, k_base, v_base, k_n, v_n, list_ptr, first, last, offs_m, n, scale, row_max, row_sum, acc,
    HEAD_DIM: tl.constexpr, BLOCK_K: tl.constexpr, KEYS: tl.constexpr, DIAGONAL: tl.constexpr,
):  # fmt: skip
    """Add the tiles first .. last - 1 of a list to the online softmax; if DIAGONAL, mask keys after the query."""
    SPLIT: tl.constexpr = BLOCK_K // KEYS
    offs_d = tl.arange(0, HEAD_DIM)
    local = tl.arange(0, KEYS)
    for t in range(first, last):
        start = tl.load(list_ptr + t // SPLIT) * BLOCK_K + t % SPLIT * KEYS
        offs_n = start + local  # [KEYS], key positions
        # Only the tile's start needs 64 bits (a [B, N, H, D] tensor of 1M tokens overflows 32).
        k_ptrs = k_base + start.to(tl.int64) * k_n + local[None, :] * k_n + offs_d[:, None]  # [HEAD_DIM, KEYS]
        v_ptrs = v_base + start.to(tl.int64) * v_n + local[:, None] * v_n + offs_d[None, :]  # [KEYS, HEAD_DIM]
        if DIAGONAL:  # the last block of the sequence, which may be partial, is always one of these
            k = tl.load(k_ptrs, mask=offs_n[None, :] < n, other=0.0)
            s = tl.dot(q, k, input_precision="ieee")  # [ROWS, KEYS]
            s = tl.where(offs_m[:, None] >= offs_n[None, :], s, -float("inf"))
        else:
            k = tl.load(k_ptrs)
            s = tl.dot(q, k, input_precision="ieee")
        p, row_max, row_sum, alpha = softmax_step(s, row_max, row_sum, scale)
        v = tl.load(v_ptrs, mask=offs_n[:, None] < n, other=0.0) if DIAGONAL else tl.load(v_ptrs)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision="ieee")
    return row_max, row_sum, acc
