"""The block-sparse forward for Hopper (sm_90), in Gluon: what block_sparse_attention.py runs there.

Same maths, same lists and same answers as the portable kernel `_forward`; tested against the same oracle.
What differs is who does what. Programs stay resident and take one item of work after another, an item being
a row of tiles of one head. In a program:

    producer     1 warp. Takes the next item from a counter in global memory, walks its list and has the
                 tensor memory accelerator (TMA) copy Q, K and V tiles into rings in shared memory, running
                 ahead of the consumers, so that one item's epilogue hides behind the next one's loads.
    consumers    2 warpgroups for a 128-row block, 1 for a 64-row block. Each owns 64 query rows:
                 S = Q K^T and O += P V on the tensor cores (wgmma), softmax on its own registers. P V of a
                 tile runs while the next tile's softmax does, and O is rescaled while the next S runs, so
                 that little is left for the tensor cores to wait for; warpgroups drift apart and fill each
                 other's gaps.

A ring slot is handed back and forth by two barriers, `full` (it was written) and `empty` (all consumers
are done with it); a barrier knows its phase only as odd or even. Two consumers of one program own the two
halves of a block, so that each tile read serves 128 rows; 64-row blocks instead run two programs of one
consumer on each multiprocessor. Lists are walked from the end: the tile on the diagonal is the first, and
with square blocks the loop has no mask.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from seerbench.core.block_mask import BlockMask, block_count
from seerbench.kernels.block_sparse.triton import flat_lists

# Triton 3.9 took the first name away, 3.6 has no other.
_tma_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
LOG2_E = 1.4426950408889634
LOWEST = gl.constexpr(-1.0e30)  # as in block_sparse_attention.py: far below any score, but finite
# (block_q, block_k) -> depth of the K ring and of the V ring, in tiles of block_k x 128. A multiprocessor has
# 227 KiB of shared memory, and 64-row blocks put two programs on it; Q takes 16 KiB for each 64 rows, a
# 64-key tile 16 KiB and a 128-key tile 32.
STAGES = {(64, 64): 3, (128, 64): 6, (128, 128): 3}
# consumers of a program -> registers a thread of theirs gets. A multiprocessor has 64 Ki: two consumers and the
# producer's warpgroup share them, or two programs of one consumer each do.
CONSUMER_REGISTERS = {1: 216, 2: 232}
PRODUCER_REGISTERS = 40


def launch(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, o: Tensor, lse: Tensor) -> None:
    """Run `_forward` into o and lse."""
    batch, heads, n, head_dim = q.shape
    consumers = mask.block_q // 64
    tiles = block_count(n, mask.block_q)
    items = batch * heads * tiles
    resident = 1 if consumers == 2 else 2  # programs on a multiprocessor
    programs = min(items, resident * _multiprocessors(q.device))
    counts, indices, width = flat_lists(mask)
    _forward[(programs,)](
        _descriptor(q, 64), _descriptor(k, mask.block_k), _descriptor(v, mask.block_k), o, lse,
        counts, indices, torch.zeros(1, dtype=torch.int32, device=q.device), *o.stride()[:3],
        n, heads, heads // k.shape[1], tiles, width, items, head_dim**-0.5 * LOG2_E,
        KEYS=mask.block_k, HEAD_DIM=head_dim, STAGES=STAGES[mask.block_q, mask.block_k], CONSUMERS=consumers,
        CONSUMER_REGISTERS=CONSUMER_REGISTERS[consumers], PRODUCER_REGISTERS=PRODUCER_REGISTERS, num_warps=4,
        **({"maxnreg": 128} if resident == 2 else {}),
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
def _locate(item, heads, group, tiles):
    """item -> (batch, head, row of tiles).

    Query heads of a group side by side, then rows, the longest first, then key/value heads: the K and V in use
    at one time are one head's, and stay in L2, and the work ends with short rows.
    """
    kv = item // (group * tiles)
    rest = item % (group * tiles)
    kv_heads = heads // group
    return kv // kv_heads, (kv % kv_heads) * group + rest % group, tiles - 1 - rest // group


@gluon.jit
def _row_of(batch, head, row, heads, tiles):
    """The line of a row of tiles in counts and indices."""
    return (batch * heads + head).to(gl.int64) * tiles + row


@gluon.jit
def _advance(slot, phase, STAGES: gl.constexpr):
    """The next slot of a ring, and the phase its barriers are in: it turns over when the ring does."""
    slot += 1
    last = slot == STAGES
    return gl.where(last, 0, slot), gl.where(last, phase ^ 1, phase)


@gluon.jit
def _hand_on(work, slot, place: gl.constexpr, value):
    """Producer: write one of the three integers of an item (its number, its tiles, its last key block)."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    work.index(slot * 4 + place).store(gl.full([1], value, gl.int32, layout))


@gluon.jit
def _receive(work, slot, place: gl.constexpr):
    """Consumer: read it."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    return gl.max(work.index(slot * 4 + place).load(layout), 0)


@gluon.jit
def _produce(
    q_desc, k_desc, v_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
    work, work_full, work_empty, counts_ptr, indices_ptr, counter_ptr, heads, group, tiles, width, items,
    KEYS: gl.constexpr, STAGES: gl.constexpr, CONSUMERS: gl.constexpr,
):  # fmt: skip
    slot = 0  # of the rings of K and V: a tile's K and V are in the same
    phase = 1
    turn = 0  # items handed on so far
    loaded = 0  # those among them that read anything
    item = gl.program_id(0)
    while item < items:
        # Asked for here, needed when this item's loads are all under way.
        following = gl.num_programs(0) + gl.atomic_add(counter_ptr, 1, sem="relaxed")
        batch, head, row = _locate(item, heads, group, tiles)
        line = _row_of(batch, head, row, heads, tiles)
        list_ptr = indices_ptr + line * width
        count = gl.load(counts_ptr + line)
        block = gl.load(list_ptr + gl.maximum(count - 1, 0))
        mbarrier.wait(work_empty.index(turn & 1), ((turn // 2) & 1) ^ 1)
        _hand_on(work, turn & 1, 0, item)
        _hand_on(work, turn & 1, 1, count)
        _hand_on(work, turn & 1, 2, block)
        mbarrier.arrive(work_full.index(turn & 1), count=1)
        fresh = True
        while count > 0:
            next_block = gl.load(list_ptr + gl.maximum(count - 2, 0))
            at = [batch, head // group, block * KEYS, 0]
            mbarrier.wait(k_empty.index(slot), phase)
            mbarrier.expect(k_full.index(slot), k_desc.block_type.nbytes)
            _tma_load(k_desc, at, k_full.index(slot), k_smem.index(slot))
            if fresh:
                # After the first K, which is under way while the consumers still use the last item's Q.
                for part in gl.static_range(CONSUMERS):
                    mbarrier.wait(q_empty.index(part), (loaded & 1) ^ 1)
                    mbarrier.expect(q_full.index(part), q_desc.block_type.nbytes)
                    q_at = [batch, head, row * (64 * CONSUMERS) + part * 64, 0]
                    _tma_load(q_desc, q_at, q_full.index(part), q_smem.index(part))
                fresh = False
                loaded += 1
            mbarrier.wait(v_empty.index(slot), phase)
            mbarrier.expect(v_full.index(slot), v_desc.block_type.nbytes)
            _tma_load(v_desc, at, v_full.index(slot), v_smem.index(slot))
            count -= 1
            block = next_block
            slot, phase = _advance(slot, phase, STAGES)
        turn += 1
        item = following
    mbarrier.wait(work_empty.index(turn & 1), ((turn // 2) & 1) ^ 1)
    _hand_on(work, turn & 1, 0, items)  # no more
    mbarrier.arrive(work_full.index(turn & 1), count=1)


@gluon.jit
def _softmax_step(s, m, l, scale):  # noqa: E741
    """Online softmax: scores of a tile, running maximum and sum -> p, m, l and the factor on the output.

    l [64, 4] is a sum for each thread of the quad that holds a row, so that only the maximum is shuffled here.
    """
    m_new = gl.maximum(m, gl.max(s, 1) * scale)
    p = gl.exp2(s * scale - gl.expand_dims(m_new, 1))
    shrink = gl.exp2(m - m_new)
    shrink_l = gl.convert_layout(shrink, gl.SliceLayout(1, l.type.layout), assert_trivial=True)
    return p, m_new, l * gl.expand_dims(shrink_l, 1) + _quad_sums(p), shrink


@gluon.jit
def _quad_sums(p):
    """[64, KEYS] -> [64, 4]: of each 8 columns a thread of the quad holds 2, and it sums all of its own."""
    return gl.sum(gl.sum(p.reshape([64, p.shape[1] // 8, 4, 2]), 3), 1)


@gluon.jit
def _consume(
    consumer: gl.constexpr, q_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
    work, work_full, work_empty,
    o_ptr, lse_ptr, indices_ptr, o_b, o_h, o_n, n, heads, group, tiles, width, items, scale,
    KEYS: gl.constexpr, HEAD_DIM: gl.constexpr, STAGES: gl.constexpr, CONSUMERS: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = q_desc.dtype
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], warps_per_cta=[4, 1], instr_shape=[16, KEYS, 16])
    O: gl.constexpr = gl.NVMMADistributedLayout([3, 0], warps_per_cta=[4, 1], instr_shape=[16, HEAD_DIM, 16])  # noqa: E741
    P: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=O, k_width=2)
    ROW_S: gl.constexpr = gl.SliceLayout(1, S)
    ROW_O: gl.constexpr = gl.SliceLayout(1, O)
    # O for the stores: a quad writes 32 contiguous bytes, a whole sector; as wgmma leaves O it would write 16.
    # Elements move only between the threads of a quad, by shuffles.
    WIDE: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [8, 0], [0, 16], [0, 32]] + ([[0, 64]] if HEAD_DIM == 128 else []),
        [[0, 4], [0, 8], [1, 0], [2, 0], [4, 0]],
        [[16, 0], [32, 0]],
        [],
        [64, HEAD_DIM],
    )
    q = q_smem.index(consumer).reshape([64, HEAD_DIM])
    no_scores = gl.zeros([64, KEYS], gl.float32, S)

    k_slot = 0
    k_phase = 0
    v_slot = 0
    v_phase = 0
    turn = 0
    loaded = 0
    mbarrier.wait(work_full.index(0), 0)
    item = _receive(work, 0, 0)
    while item < items:
        batch, head, row = _locate(item, heads, group, tiles)
        first = row * (64 * CONSUMERS) + consumer * 64
        count = _receive(work, turn & 1, 1)
        last_block = _receive(work, turn & 1, 2)
        mbarrier.arrive(work_empty.index(turn & 1), count=1)
        list_ptr = indices_ptr + _row_of(batch, head, row, heads, tiles) * width
        m = gl.full([64], LOWEST, gl.float32, ROW_S)
        l = _quad_sums(no_scores)  # noqa: E741
        acc = gl.zeros([64, HEAD_DIM], gl.float32, O)
        if count > 0:
            mbarrier.wait(q_full.index(consumer), loaded & 1)
            loaded += 1
            mbarrier.wait(k_full.index(k_slot), k_phase)
            s = warpgroup_mma(q, _keys(k_smem, k_slot, KEYS, HEAD_DIM), no_scores, use_acc=False)
            mbarrier.arrive(k_empty.index(k_slot), count=1)
            s = _mask(s, first, last_block, KEYS, S)
            p, m, l, shrink = _softmax_step(s, m, l, scale)  # noqa: E741
            p = gl.convert_layout(p.to(dtype), P)
            if count > 1:
                k_slot, k_phase = _advance(k_slot, k_phase, STAGES)
                mbarrier.wait(k_full.index(k_slot), k_phase)
            while count > 1:
                # S of this tile, whose K is there, and P V of the last run on the tensor cores during the softmax.
                count -= 1
                k = _keys(k_smem, k_slot, KEYS, HEAD_DIM)
                s = warpgroup_mma(q, k, no_scores, use_acc=False, is_async=True)
                # O is rescaled beside S, not before it.
                acc = _scale_here(acc, gl.expand_dims(gl.convert_layout(shrink, ROW_O), 1))
                mbarrier.wait(v_full.index(v_slot), v_phase)
                acc = warpgroup_mma(p, v_smem.index(v_slot).reshape([KEYS, HEAD_DIM]), acc, is_async=True)
                s = warpgroup_mma_wait(1, deps=[s])
                if 64 * CONSUMERS > KEYS:  # the second tile may cross the diagonal too
                    s = _mask(s, first, gl.load(list_ptr + count - 1), KEYS, S)
                p_next, m, l, shrink = _softmax_step(s, m, l, scale)  # noqa: E741
                # P is rounded beside P V, so that the next S need not wait for it.
                p_next = gl.convert_layout(_round_here(p_next, dtype), P)
                # The next tile's K is waited for here and not where it is used: the branch in a wait keeps ptxas
                # from moving the end of P V up, before the softmax, which would undo the overlap (seen in the
                # SASS of Triton 3.6's ptxas). After the last tile it is this tile's K, which has come.
                used = k_slot
                if count > 1:
                    k_slot, k_phase = _advance(k_slot, k_phase, STAGES)
                mbarrier.wait(k_full.index(k_slot), k_phase)
                acc = warpgroup_mma_wait(0, deps=[acc])
                mbarrier.arrive(k_empty.index(used), count=1)
                mbarrier.arrive(v_empty.index(v_slot), count=1)
                v_slot, v_phase = _advance(v_slot, v_phase, STAGES)
                p = p_next
            k_slot, k_phase = _advance(k_slot, k_phase, STAGES)
            mbarrier.arrive(q_empty.index(consumer), count=1)
            acc = _scale_here(acc, gl.expand_dims(gl.convert_layout(shrink, ROW_O), 1))
            mbarrier.wait(v_full.index(v_slot), v_phase)
            acc = warpgroup_mma(p, v_smem.index(v_slot).reshape([KEYS, HEAD_DIM]), acc)
            mbarrier.arrive(v_empty.index(v_slot), count=1)
            v_slot, v_phase = _advance(v_slot, v_phase, STAGES)

        total = gl.convert_layout(gl.sum(l, 1), ROW_S, assert_trivial=True)
        seen = total > 0
        total = gl.where(seen, total, 1.0)
        rows = first + gl.arange(0, 64, ROW_S)
        lse = gl.where(seen, (m + gl.log2(total)) / 1.4426950408889634, float("-inf"))
        gl.store(lse_ptr + (batch * heads + head).to(gl.int64) * n + rows, lse, mask=rows < n)
        acc = acc * gl.expand_dims(gl.convert_layout(1.0 / total, ROW_O), 1)
        rows = gl.arange(0, 64, gl.SliceLayout(1, WIDE))
        columns = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, WIDE))
        o_base = o_ptr + batch.to(gl.int64) * o_b + head.to(gl.int64) * o_h + first.to(gl.int64) * o_n
        where = gl.expand_dims(rows * o_n, 1) + gl.expand_dims(columns, 0)
        out = gl.convert_layout(acc.to(dtype), WIDE)
        gl.store(o_base + where, out, mask=gl.expand_dims(first + rows < n, 1))
        turn += 1
        mbarrier.wait(work_full.index(turn & 1), (turn // 2) & 1)
        item = _receive(work, turn & 1, 0)


@gluon.jit
def _scale_here(x, factor):
    """x * factor, in float32. LLVM moves a plain product up, before the wgmma that it should run beside."""
    x, factor = gl.broadcast(x, factor)
    return gl.inline_asm_elementwise(
        "mul.f32 $0, $1, $2;", "=f,f,f", [x, factor], dtype=gl.float32, is_pure=False, pack=1
    )


@gluon.jit
def _round_here(x, dtype: gl.constexpr):
    """x.to(dtype), two at a time. LLVM moves a plain conversion down behind the wait, into the next tile's turn."""
    if dtype == gl.bfloat16:
        rounded = gl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [x], dtype=gl.bfloat16, is_pure=False, pack=2
        )
    else:
        rounded = gl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [x], dtype=gl.float16, is_pure=False, pack=2
        )
    return rounded


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


@gluon.jit
def _barriers(slots: gl.constexpr, arrivals: gl.constexpr):
    """A barrier for each slot; a phase ends when `arrivals` parties have arrived."""
    barriers = gl.allocate_shared_memory(gl.int64, [slots, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(slots):
        mbarrier.init(barriers.index(i), count=arrivals)
    return barriers


@gluon.jit(do_not_specialize=["n", "heads", "group", "tiles", "width", "items"])
def _forward(
    q_desc, k_desc, v_desc, o_ptr, lse_ptr, counts_ptr, indices_ptr, counter_ptr, o_b, o_h, o_n,
    n, heads, group, tiles, width, items, scale,
    KEYS: gl.constexpr, HEAD_DIM: gl.constexpr, STAGES: gl.constexpr, CONSUMERS: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = q_desc.dtype
    # Concatenated, since Gluon's parser takes no * in a list.
    q_smem = gl.allocate_shared_memory(dtype, [CONSUMERS] + q_desc.block_shape, q_desc.layout)  # noqa: RUF005
    k_smem = gl.allocate_shared_memory(dtype, [STAGES] + k_desc.block_shape, k_desc.layout)  # noqa: RUF005
    v_smem = gl.allocate_shared_memory(dtype, [STAGES] + v_desc.block_shape, v_desc.layout)  # noqa: RUF005
    q_full = _barriers(CONSUMERS, 1)
    q_empty = _barriers(CONSUMERS, 1)
    k_full = _barriers(STAGES, 1)
    k_empty = _barriers(STAGES, CONSUMERS)
    v_full = _barriers(STAGES, 1)
    v_empty = _barriers(STAGES, CONSUMERS)
    work = gl.allocate_shared_memory(gl.int32, [8, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))  # a ring of two
    work_full = _barriers(2, 1)
    work_empty = _barriers(2, CONSUMERS)
    # Written out twice: a list of functions that is put together gives Gluon tensors for the constants in it.
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (_consume, (
                    0, q_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
                    work, work_full, work_empty,
                    o_ptr, lse_ptr, indices_ptr, o_b, o_h, o_n, n, heads, group, tiles, width, items, scale,
                    KEYS, HEAD_DIM, STAGES, CONSUMERS,
                )),
                (_consume, (
                    1, q_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
                    work, work_full, work_empty,
                    o_ptr, lse_ptr, indices_ptr, o_b, o_h, o_n, n, heads, group, tiles, width, items, scale,
                    KEYS, HEAD_DIM, STAGES, CONSUMERS,
                )),
                (_produce, (
                    q_desc, k_desc, v_desc, q_smem, k_smem, v_smem,
                    q_full, q_empty, k_full, k_empty, v_full, v_empty, work, work_full, work_empty,
                    counts_ptr, indices_ptr, counter_ptr, heads, group, tiles, width, items,
                    KEYS, STAGES, CONSUMERS,
                )),
            ],
            [4, 1],
            [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (_consume, (
                    0, q_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
                    work, work_full, work_empty,
                    o_ptr, lse_ptr, indices_ptr, o_b, o_h, o_n, n, heads, group, tiles, width, items, scale,
                    KEYS, HEAD_DIM, STAGES, CONSUMERS,
                )),
                (_produce, (
                    q_desc, k_desc, v_desc, q_smem, k_smem, v_smem,
                    q_full, q_empty, k_full, k_empty, v_full, v_empty, work, work_full, work_empty,
                    counts_ptr, indices_ptr, counter_ptr, heads, group, tiles, width, items,
                    KEYS, STAGES, CONSUMERS,
                )),
            ],
            [1],
            [PRODUCER_REGISTERS],
        )  # fmt: skip
