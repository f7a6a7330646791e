"""The block-sparse forward for Hopper (sm_90), in Gluon: what block_sparse_attention.py runs there.

Same maths, same lists and same answers as the portable kernel `_forward`; tested against the same oracle.
What differs is who does what. One program a multiprocessor stays resident and takes work items in turn
(so that one item's epilogue hides behind the next one's loads). In it:

    producer     1 warp. Walks the lists and has the tensor memory accelerator (TMA) copy Q, K and V
                 tiles into two rings in shared memory, running ahead of the consumers.
    consumers    2 warpgroups. Each owns 64 query rows: S = Q K^T and O += P V on the tensor cores
                 (wgmma), softmax on its own registers. S of the next tile is issued before the softmax
                 of this one, so that tensor cores and exponentials overlap, and the two warpgroups
                 drift apart and fill each other's gaps.

A ring slot is handed back and forth by two barriers, `full` (bytes arrived) and `empty` (both consumers
are done with it). The two consumers own the two halves of a 128-row query block, so that each tile read
serves 128 rows. Lists are walked from the end: the tile on the diagonal is the first, and with square
blocks the loop has no mask.

For 64-row blocks the portable kernel is as fast or faster: there two consumers would need two lists, and
reading the union of two heads' lists was measured and lost (docs/LOG.md).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from seerbench.attention import BlockMask, block_count
from seerbench.kernels.block_sparse_attention import flat_lists

# Triton 3.9 took the first name away, 3.6 has no other.
_tma_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared

LOG2_E = 1.4426950408889634
LOWEST = gl.constexpr(-1.0e30)  # as in block_sparse_attention.py: far below any score, but finite

# block_k -> depth of the K ring and of the V ring, in tiles of block_k x 128: shared memory holds 227 KiB,
# of which Q takes 32 (a 64-key tile is 16 KiB, a 128-key tile 32 KiB).
STAGES = {64: (6, 6), 128: (3, 3)}
# Registers a thread: 2 consumer warpgroups and the producer's share 64 Ki, and both consumers get 232.
CONSUMER_REGISTERS, PRODUCER_REGISTERS = 232, 40


def launch(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, o: Tensor, lse: Tensor) -> None:
    """Run `_forward` into o and lse."""
    batch, heads, n, head_dim = q.shape
    tiles = block_count(n, mask.block_q)
    items = batch * heads * tiles
    k_stages, v_stages = STAGES[mask.block_k]
    counts, indices, width = flat_lists(mask)
    programs = min(items, _multiprocessors(q.device))
    _forward[(programs,)](
        _descriptor(q, 64), _descriptor(k, mask.block_k), _descriptor(v, mask.block_k), o, lse,
        counts, indices, *o.stride()[:3],
        n, heads, heads // k.shape[1], tiles, width, items, head_dim**-0.5 * LOG2_E,
        KEYS=mask.block_k, HEAD_DIM=head_dim,
        K_STAGES=k_stages, V_STAGES=v_stages,
        CONSUMER_REGISTERS=CONSUMER_REGISTERS, PRODUCER_REGISTERS=PRODUCER_REGISTERS, num_warps=4,
    )  # fmt: skip


def _descriptor(x: Tensor, rows: int) -> TensorDescriptor:
    """TMA's view of [B, H, N, D]: boxes of `rows` x D. What lies past N is read as zero."""
    shape = [1, 1, rows, x.shape[-1]]
    return TensorDescriptor(x, list(x.shape), list(x.stride()), shape, _layout(*shape, x.dtype))


@functools.cache  # these two are asked for at each launch, and launching is most of a short kernel's time
def _layout(*shape_and_dtype: Any) -> gl.NVMMASharedLayout:
    *shape, dtype = shape_and_dtype
    return gl.NVMMASharedLayout.get_default_for(shape, gl.float16 if dtype == torch.float16 else gl.bfloat16)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@gluon.jit
def _item_of(turn):
    """The item of this program's turn: forwards on even turns and backwards on odd ones, since items
    come longest first and the first program would otherwise always get the longest of each round."""
    programs = gl.num_programs(0)
    place = gl.where(turn % 2 == 0, gl.program_id(0), programs - 1 - gl.program_id(0))
    return turn * programs + place


@gluon.jit
def _locate(item, items, heads, group, tiles):
    """item -> (batch, head, row of tiles).

    Query heads of a group side by side, then rows, then key/value heads: the K and V in use at one time
    are one head's, and stay in L2. Rows go from the longest down and, for every other key/value head, back
    up: the number of items a head has can be near a multiple of the number of programs, and some of these
    would then draw the longest of each head. The last head goes down, so that the work ends with short rows.
    """
    kv = item // (group * tiles)
    rest = item % (group * tiles)
    kv_heads = heads // group
    step = rest // group
    up = (items // (group * tiles) - 1 - kv) % 2
    row = gl.where(up == 1, step, tiles - 1 - step)
    return kv // kv_heads, (kv % kv_heads) * group + rest % group, row


@gluon.jit
def _list_of(counts_ptr, indices_ptr, batch, head, row, heads, tiles, width):
    """(address, length) of a row's list."""
    line = (batch * heads + head).to(gl.int64) * tiles + row
    return indices_ptr + line * width, gl.load(counts_ptr + line)


@gluon.jit
def _produce(
    q_desc, k_desc, v_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
    counts_ptr, indices_ptr, heads, group, tiles, width, items,
    KEYS: gl.constexpr, K_STAGES: gl.constexpr, V_STAGES: gl.constexpr,
):  # fmt: skip
    step = 0  # tiles put into the rings so far, over all items
    turn = 0  # items that read anything, so far
    at_item = 0
    item = _item_of(at_item)
    while item < items:
        batch, head, row = _locate(item, items, heads, group, tiles)
        list_ptr, count = _list_of(counts_ptr, indices_ptr, batch, head, row, heads, tiles, width)
        fresh = True
        while count > 0:
            block = gl.load(list_ptr + count - 1)
            k_slot = step % K_STAGES
            mbarrier.wait(k_empty.index(k_slot), ((step // K_STAGES) & 1) ^ 1)
            mbarrier.expect(k_full.index(k_slot), k_desc.block_type.nbytes)
            at = [batch, head // group, block * KEYS, 0]
            _tma_load(k_desc, at, k_full.index(k_slot), k_smem.index(k_slot))
            if fresh:
                # After the first K, which is under way while the consumers still use the last item's Q.
                for half in gl.static_range(2):
                    mbarrier.wait(q_empty.index(half), (turn & 1) ^ 1)
                    mbarrier.expect(q_full.index(half), q_desc.block_type.nbytes)
                    q_at = [batch, head, row * 128 + half * 64, 0]
                    _tma_load(q_desc, q_at, q_full.index(half), q_smem.index(half))
                fresh = False
                turn += 1
            v_slot = step % V_STAGES
            mbarrier.wait(v_empty.index(v_slot), ((step // V_STAGES) & 1) ^ 1)
            mbarrier.expect(v_full.index(v_slot), v_desc.block_type.nbytes)
            _tma_load(v_desc, at, v_full.index(v_slot), v_smem.index(v_slot))
            count -= 1
            step += 1
        at_item += 1
        item = _item_of(at_item)


@gluon.jit
def _softmax_step(s, m, l, scale):  # noqa: E741
    """Online softmax: scores of a tile, running maximum and sum -> p, m, l and the factor on the output."""
    m_new = gl.maximum(m, gl.max(s, 1) * scale)
    p = gl.exp2(s * scale - gl.expand_dims(m_new, 1))
    shrink = gl.exp2(m - m_new)
    return p, m_new, l * shrink + gl.sum(p, 1), shrink


@gluon.jit
def _consume(
    consumer: gl.constexpr, q_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
    o_ptr, lse_ptr, counts_ptr, indices_ptr, o_b, o_h, o_n, n, heads, group, tiles, width, items, scale,
    KEYS: gl.constexpr, HEAD_DIM: gl.constexpr,
    K_STAGES: gl.constexpr, V_STAGES: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = q_desc.dtype
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], warps_per_cta=[4, 1], instr_shape=[16, KEYS, 16])
    O: gl.constexpr = gl.NVMMADistributedLayout([3, 0], warps_per_cta=[4, 1], instr_shape=[16, HEAD_DIM, 16])  # noqa: E741
    P: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=O, k_width=2)
    ROW_S: gl.constexpr = gl.SliceLayout(1, S)
    ROW_O: gl.constexpr = gl.SliceLayout(1, O)
    q = q_smem.index(consumer).reshape([64, HEAD_DIM])
    no_scores = gl.zeros([64, KEYS], gl.float32, S)

    step = 0
    turn = 0
    at_item = 0
    item = _item_of(at_item)
    while item < items:
        batch, head, row = _locate(item, items, heads, group, tiles)
        first = row * 128 + consumer * 64
        list_ptr, count = _list_of(counts_ptr, indices_ptr, batch, head, row, heads, tiles, width)
        m = gl.full([64], LOWEST, gl.float32, ROW_S)
        l = gl.zeros([64], gl.float32, ROW_S)  # noqa: E741
        acc = gl.zeros([64, HEAD_DIM], gl.float32, O)
        if count > 0:
            mbarrier.wait(q_full.index(consumer), turn & 1)
            turn += 1
            k_slot = step % K_STAGES
            mbarrier.wait(k_full.index(k_slot), (step // K_STAGES) & 1)
            s = warpgroup_mma(q, _keys(k_smem, k_slot, KEYS, HEAD_DIM), no_scores, use_acc=False)
            mbarrier.arrive(k_empty.index(k_slot), count=1)
            s = _mask(s, first, gl.load(list_ptr + count - 1), KEYS, S)
            p, m, l, shrink = _softmax_step(s, m, l, scale)  # noqa: E741
            p = gl.convert_layout(p.to(dtype), P)
            while count > 1:
                # S of this tile and P V of the last run on the tensor cores during the softmax.
                count -= 1
                v_slot = step % V_STAGES
                v_phase = (step // V_STAGES) & 1
                v = v_smem.index(v_slot).reshape([KEYS, HEAD_DIM])
                step += 1
                k_slot = step % K_STAGES
                mbarrier.wait(k_full.index(k_slot), (step // K_STAGES) & 1)
                k = _keys(k_smem, k_slot, KEYS, HEAD_DIM)
                s = warpgroup_mma(q, k, no_scores, use_acc=False, is_async=True)
                mbarrier.wait(v_full.index(v_slot), v_phase)
                acc = warpgroup_mma(p, v, acc, is_async=True)
                s = warpgroup_mma_wait(1, deps=[s])
                mbarrier.arrive(k_empty.index(k_slot), count=1)
                if KEYS < 128:  # the second tile may cross the diagonal too
                    s = _mask(s, first, gl.load(list_ptr + count - 1), KEYS, S)
                p_next, m, l, shrink = _softmax_step(s, m, l, scale)  # noqa: E741
                # Long since full: the branch in it keeps ptxas from moving the next line up, before
                # the softmax, which would undo the overlap (seen in the SASS of Triton 3.6's ptxas).
                mbarrier.wait(v_full.index(v_slot), v_phase)
                acc = warpgroup_mma_wait(0, deps=[acc])
                mbarrier.arrive(v_empty.index(v_slot), count=1)
                acc = acc * gl.expand_dims(gl.convert_layout(shrink, ROW_O), 1)
                p = gl.convert_layout(p_next.to(dtype), P)
            mbarrier.arrive(q_empty.index(consumer), count=1)
            v_slot = step % V_STAGES
            mbarrier.wait(v_full.index(v_slot), (step // V_STAGES) & 1)
            acc = warpgroup_mma(p, v_smem.index(v_slot).reshape([KEYS, HEAD_DIM]), acc)
            mbarrier.arrive(v_empty.index(v_slot), count=1)
            step += 1

        seen = l > 0
        total = gl.where(seen, l, 1.0)
        rows = first + gl.arange(0, 64, ROW_S)
        lse = gl.where(seen, (m + gl.log2(total)) / 1.4426950408889634, float("-inf"))
        gl.store(lse_ptr + (batch * heads + head).to(gl.int64) * n + rows, lse, mask=rows < n)
        acc = acc * gl.expand_dims(gl.convert_layout(1.0 / total, ROW_O), 1)
        rows = gl.arange(0, 64, ROW_O)
        columns = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, O))
        o_base = o_ptr + batch.to(gl.int64) * o_b + head.to(gl.int64) * o_h + first.to(gl.int64) * o_n
        where = gl.expand_dims(rows * o_n, 1) + gl.expand_dims(columns, 0)
        gl.store(o_base + where, acc.to(dtype), mask=gl.expand_dims(first + rows < n, 1))
        at_item += 1
        item = _item_of(at_item)


@gluon.jit
def _keys(k_smem, slot, KEYS: gl.constexpr, HEAD_DIM: gl.constexpr):
    """A tile of K, transposed: [HEAD_DIM, KEYS]."""
    return k_smem.index(slot).reshape([KEYS, HEAD_DIM]).permute((1, 0))


@gluon.jit
def _mask(s, first, block, KEYS: gl.constexpr, S: gl.constexpr):
    """Scores with the keys after the query, and the keys past the end, out of sight."""
    queries = first + gl.arange(0, 64, gl.SliceLayout(1, S))
    keys = block * KEYS + gl.arange(0, KEYS, gl.SliceLayout(0, S))
    return gl.where(gl.expand_dims(queries, 1) >= gl.expand_dims(keys, 0), s, float("-inf"))


@gluon.jit(do_not_specialize=["n", "heads", "group", "tiles", "width", "items"])
def _forward(
    q_desc, k_desc, v_desc, o_ptr, lse_ptr, counts_ptr, indices_ptr, o_b, o_h, o_n,
    n, heads, group, tiles, width, items, scale,
    KEYS: gl.constexpr, HEAD_DIM: gl.constexpr,
    K_STAGES: gl.constexpr, V_STAGES: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = q_desc.dtype
    # Concatenated, since Gluon's parser takes no * in a list.
    q_smem = gl.allocate_shared_memory(dtype, [2] + q_desc.block_shape, q_desc.layout)  # noqa: RUF005
    k_smem = gl.allocate_shared_memory(dtype, [K_STAGES] + k_desc.block_shape, k_desc.layout)  # noqa: RUF005
    v_smem = gl.allocate_shared_memory(dtype, [V_STAGES] + v_desc.block_shape, v_desc.layout)  # noqa: RUF005
    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [V_STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [V_STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=1)
    for i in gl.static_range(K_STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)
    for i in gl.static_range(V_STAGES):
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=2)
    gl.warp_specialize(
        [
            (_consume, (
                0, q_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
                o_ptr, lse_ptr, counts_ptr, indices_ptr, o_b, o_h, o_n, n, heads, group, tiles, width, items,
                scale, KEYS, HEAD_DIM, K_STAGES, V_STAGES,
            )),
            (_consume, (
                1, q_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
                o_ptr, lse_ptr, counts_ptr, indices_ptr, o_b, o_h, o_n, n, heads, group, tiles, width, items,
                scale, KEYS, HEAD_DIM, K_STAGES, V_STAGES,
            )),
            (_produce, (
                q_desc, k_desc, v_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
                counts_ptr, indices_ptr, heads, group, tiles, width, items, KEYS, K_STAGES, V_STAGES,
            )),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
