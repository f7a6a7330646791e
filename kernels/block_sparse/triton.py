"""Block-sparse FlashAttention: softmax attention over the key blocks that a BlockMask lists.

    O[i] = sum_{j seen by i} softmax_j(q_i . k_j / sqrt(D)) v_j,   seen = listed block and j <= i

Paper   SeerAttention (arXiv:2410.13276), section 3.3: a FlashAttention that visits the chosen blocks only.
Oracle  seerbench.core.reference.reference_attention, float64.
Here    CPU: FlexAttention (flex_attention.py), which really skips.
        GPU: `_forward`, portable Triton (Ampere and later);
        on Hopper its twin in Gluon for most blocks, block_sparse_hopper.py, same lists, same answers.

What the GPU kernel does: one program owns a tile of query rows of one head, walks that row's list of
key blocks, and keeps a running maximum m, sum l and output o (online softmax, in base 2 because the
hardware exponential is exp2). Lists ascend, so only the last entries can cross the diagonal: the walk
is split in two, and the first loop, nearly all the work, has no mask and no bounds check at all.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from seerbench.core.block_mask import BlockMask, block_count

LOG2_E = 1.4426950408889634
# The running maximum starts far below any score but finite, so that a row whose first tiles are all
# masked computes exp2(-inf - LOWEST) = 0 and never -inf - -inf.
LOWEST = tl.constexpr(-1.0e30)


def flat_lists(mask: BlockMask) -> tuple[Tensor, Tensor, int]:
    """(counts, indices, entries from one row's list to the next) as the kernels address them.

    Rows may share one list (an expanded view, all strides zero): dense attention then needs n entries.
    """
    indices = mask.kv_indices
    if not indices.shape[-1]:
        indices = indices.new_zeros(*indices.shape[:-1], 1)  # a first entry is read ahead
    shared = all(step == 0 for step in indices.stride()[:-1])
    if not shared:
        indices = indices.contiguous()
    return mask.kv_num_blocks.contiguous(), indices, 0 if shared else indices.shape[-1]


# (block_q, block_k) -> tile of the kernel: query rows, keys, warps, pipeline stages. Fixed, so that a row's
# kernel never depends on what an autotuner timed; the ladder that chose them is in docs/LOG.md.
TILES = {
    (32, 32): (32, 32, 2, 3),  # for accuracy at small blocks; too few rows for wgmma, and never tuned
    (64, 64): (64, 64, 4, 3),  # 113 KiB: two programs a multiprocessor; 2 stages are 1 to 4% slower
    (64, 128): (64, 64, 4, 3),  # the same, a 128-key block in two steps
    (128, 64): (128, 64, 8, 3),  # 4 warps would spill (200 bytes)
    (128, 128): (128, 128, 8, 2),  # 10.7x FA-2 at 32k and 90%; 64 keys and 3 stages: 8.5x
}


def launch(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, o: Tensor, lse: Tensor, tile: tuple[int, ...] | None = None
) -> None:
    """Run `_forward` into o and lse. `tile` overrides TILES (the ladder measures others)."""
    (batch, heads, n, head_dim), kv_heads = q.shape, k.shape[1]
    rows, keys, warps, stages = tile or TILES[mask.block_q, mask.block_k]
    counts, indices, width = flat_lists(mask)
    grid = (block_count(n, rows) * heads * batch,)
    _forward[grid](
        q, k, v, o, lse, counts, indices,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *o.stride()[:3],
        n, heads, heads // kv_heads, counts.shape[-1], width, head_dim**-0.5 * LOG2_E,
        HEAD_DIM=head_dim, BLOCK_Q=mask.block_q, BLOCK_K=mask.block_k, ROWS=rows, KEYS=keys,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip


# Unspecialised: otherwise a length or width divisible by 16, or equal to 1, would be another kernel.
@triton.jit(do_not_specialize=["n", "heads", "group", "mask_rows", "width"])
def _forward(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, counts_ptr, indices_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n,  # strides
    n, heads, group, mask_rows, width, scale,
    HEAD_DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    # Order of programs: the query heads of a group side by side (they read the same K and V), then
    # rows from the last, which have the longest lists, to the first, then key/value heads, so that
    # the K and V in use at one time are one head's and stay in L2.
    pid = tl.program_id(0)
    tiles = tl.cdiv(n, ROWS)
    kv, rest = pid // (group * tiles), pid % (group * tiles)
    tile = tiles - 1 - rest // group
    kv_heads = heads // group
    batch, head = kv // kv_heads, (kv % kv_heads) * group + rest % group
    row = (batch * heads + head).to(tl.int64)

    local = tl.arange(0, ROWS)
    offs_m = tile * ROWS + local
    offs_d = tl.arange(0, HEAD_DIM)
    in_range = offs_m[:, None] < n
    first = (tile * ROWS).to(tl.int64)
    q_base = q_ptr + batch.to(tl.int64) * q_b + head.to(tl.int64) * q_h + first * q_n
    q = tl.load(q_base + local[:, None] * q_n + offs_d[None, :], mask=in_range, other=0.0)
    k_base = k_ptr + batch.to(tl.int64) * k_b + (head // group).to(tl.int64) * k_h
    v_base = v_ptr + batch.to(tl.int64) * v_b + (head // group).to(tl.int64) * v_h

    mask_row = row * mask_rows + tile * ROWS // BLOCK_Q
    count = tl.load(counts_ptr + mask_row)
    list_ptr = indices_ptr + mask_row * width
    # Blocks that hold a key after this tile's first query cross the diagonal; they end the list.
    crossing = 0
    for back in tl.static_range(1, (ROWS + BLOCK_K - 1) // BLOCK_K + 1):
        block = tl.load(list_ptr + count - back, mask=back <= count, other=-1)
        crossing += (block * BLOCK_K + BLOCK_K - 1 > tile * ROWS).to(tl.int32)

    m = tl.full([ROWS], LOWEST, tl.float32)
    l = tl.zeros([ROWS], tl.float32)  # noqa: E741
    acc = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    SPLIT: tl.constexpr = BLOCK_K // KEYS  # tiles a key block
    m, l, acc = _walk(  # noqa: E741
        q, k_base, v_base, k_n, v_n, list_ptr, 0, (count - crossing) * SPLIT, offs_m, n, scale, m, l, acc,
        HEAD_DIM, BLOCK_K, KEYS, False,
    )  # fmt: skip
    m, l, acc = _walk(  # noqa: E741
        q, k_base, v_base, k_n, v_n, list_ptr, (count - crossing) * SPLIT, count * SPLIT, offs_m, n, scale,
        m, l, acc, HEAD_DIM, BLOCK_K, KEYS, True,
    )  # fmt: skip

    seen = l > 0
    l = tl.where(seen, l, 1.0)  # noqa: E741
    o_base = o_ptr + batch.to(tl.int64) * o_b + head.to(tl.int64) * o_h + first * o_n
    out = (acc / l[:, None]).to(o_ptr.dtype.element_ty)
    tl.store(o_base + local[:, None] * o_n + offs_d[None, :], out, mask=in_range)
    lse = tl.where(seen, (m + tl.log2(l)) / 1.4426950408889634, -float("inf"))
    tl.store(lse_ptr + row * n + offs_m, lse, mask=offs_m < n)


@triton.jit
def _walk(
    q, k_base, v_base, k_n, v_n, list_ptr, first, last, offs_m, n, scale, m, l, acc,  # noqa: E741
    HEAD_DIM: tl.constexpr, BLOCK_K: tl.constexpr, KEYS: tl.constexpr, CROSSING: tl.constexpr,
):  # fmt: skip
    """FlashAttention over the tiles first .. last - 1 of a list; CROSSING ones compare positions."""
    SPLIT: tl.constexpr = BLOCK_K // KEYS
    offs_d = tl.arange(0, HEAD_DIM)
    local = tl.arange(0, KEYS)
    for t in range(first, last):
        start = tl.load(list_ptr + t // SPLIT) * BLOCK_K + t % SPLIT * KEYS
        offs_n = start + local
        # Only the tile's start needs 64 bits (a [B, N, H, D] tensor of 1M tokens overflows 32).
        k_ptrs = k_base + start.to(tl.int64) * k_n + local[None, :] * k_n + offs_d[:, None]
        v_ptrs = v_base + start.to(tl.int64) * v_n + local[:, None] * v_n + offs_d[None, :]
        if CROSSING:  # the tail block, which may be partial, always crosses
            k = tl.load(k_ptrs, mask=offs_n[None, :] < n, other=0.0)
            s = tl.dot(q, k, input_precision="ieee")
            s = tl.where(offs_m[:, None] >= offs_n[None, :], s, -float("inf"))
        else:
            k = tl.load(k_ptrs)
            s = tl.dot(q, k, input_precision="ieee")
        m_new = tl.maximum(m, tl.max(s, 1) * scale)
        p = tl.exp2(s * scale - m_new[:, None])
        shrink = tl.exp2(m - m_new)
        l = l * shrink + tl.sum(p, 1)  # noqa: E741
        v = tl.load(v_ptrs, mask=offs_n[:, None] < n, other=0.0) if CROSSING else tl.load(v_ptrs)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        m = m_new
    return m, l, acc
