"""The block-sparse forward for Hopper (sm_90), in Gluon: what block_sparse_attention.py runs there.

Same maths, same lists and same answers as the portable kernel `_forward`; tested against the same oracle.
What differs is who does what. Programs stay resident and take one item of work after another, an item being
a row of tiles of one head. In a program:

    producer     1 warp. Takes the next item from a counter in global memory, walks its list and has the
                 tensor memory accelerator (TMA) copy Q, K and V tiles into rings in shared memory, running
                 ahead of the consumers, so that one item's epilogue hides behind the next one's loads.
    consumers    2 warpgroups for a 128-row block, 1 for a 64-row block. Each owns 64 query rows:
                 S = Q K^T and O += P V on the tensor cores (wgmma), softmax on its own registers. S of the
                 next tile is issued before the softmax of this one, so that tensor cores and exponentials
                 overlap, and warpgroups drift apart and fill each other's gaps.

A ring slot is handed back and forth by two barriers, `full` (it was written) and `empty` (all consumers
are done with it); a barrier knows its phase only as odd or even. Two consumers of one program own the two
halves of a block, so that each tile read serves 128 rows; 64-row blocks instead run two programs of one
consumer on each multiprocessor. Lists are walked from the end: the tile on the diagonal is the first, and
with square blocks the loop has no mask.
"""

# ruff: noqa: E501, RUF005, RUF100
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

# (block_q, block_k) -> depth of the K ring and of the V ring, in tiles of block_k x 128. A multiprocessor has
# 227 KiB of shared memory, and 64-row blocks put two programs on it; Q takes 16 KiB for each 64 rows, a
# 64-key tile 16 KiB and a 128-key tile 32.
STAGES = {(64, 64): 3, (128, 64): 5, (128, 128): 3}  # of K; V has one less, Q two
# consumers of a program -> registers a thread of theirs gets. A multiprocessor has 64 Ki: two consumers and the
# producer's warpgroup share them, or two programs of one consumer each do.
CONSUMER_REGISTERS = {1: 216, 2: 232}
PRODUCER_REGISTERS = 40
SCAN = False  # walk the keys of a head together; the order of a row's sums then depends on timing


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
        counts, indices, torch.zeros(2, dtype=torch.int32, device=q.device), *o.stride()[:3],
        n, heads, heads // k.shape[1], tiles, width, items, head_dim**-0.5 * LOG2_E,
        KEYS=mask.block_k, HEAD_DIM=head_dim, STAGES=STAGES[mask.block_q, mask.block_k], CONSUMERS=consumers,
        SCAN=SCAN and mask.block_q == mask.block_k,
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

    The longest rows first, so that the work ends with short ones; key/value head by key/value head. Short contexts:
    query heads of a group side by side, which balances better. Long ones, whose K and V fill L2: query head by
    query head. A head ends with its shortest rows, so that the programs start the next together and walk its keys
    side by side: what one reads the others find in L2.
    """
    side = gl.where(tiles < 512, group, 1)
    kv = item // (side * tiles)
    rest = item % (side * tiles)
    sides = heads // side
    return kv // sides, (kv % sides) * side + rest % side, tiles - 1 - rest // side


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
    """Producer: write one of the integers of an item (its number, batch, head, row, tiles, last key block)."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    work.index(slot * 8 + place).store(gl.full([1], value, gl.int32, layout))


@gluon.jit
def _receive(work, slot, place: gl.constexpr):
    """Consumer: read it."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    return gl.max(work.index(slot * 8 + place).load(layout), 0)


@gluon.jit
def _produce(
    q_desc, k_desc, v_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, v_full, used,
    work, work_full, work_empty, counts_ptr, indices_ptr, counter_ptr, heads, group, tiles, width, items,
    KEYS: gl.constexpr, STAGES: gl.constexpr, CONSUMERS: gl.constexpr, SCAN: gl.constexpr,
):  # fmt: skip
    # Tiles are counted over all items. In the order of their loads: K 0, Q, K 1, V 0, K 2, V 1, ..., and an item's
    # last V before the next item's first K. used[t % STAGES] says that all consumers are done with K t and V t-1.
    slot = 0
    phase = 1
    v_slot = 0
    turn = 0
    item = gl.program_id(0)
    owed = gl.to_tensor(0.0)  # progress not yet told to the others
    count = gl.load(counts_ptr + _line_of(item, items, heads, group, tiles))
    while item < items:
        following = gl.num_programs(0) + gl.atomic_add(counter_ptr, 1, sem="relaxed")
        batch, head, row = _locate(item, heads, group, tiles)
        list_ptr = indices_ptr + _row_of(batch, head, row, heads, tiles) * width
        block = gl.where(count > 0, gl.load(list_ptr + gl.maximum(count - 1, 0)), 0)
        cursor = count - 2
        if SCAN:
            # All programs walk the keys of a head together, so that what one reads the others find in L2: each
            # begins where the mean program is, in 1024ths of a list, and wraps around. The diagonal stays first.
            mean = (gl.atomic_add(counter_ptr + 1, 0, sem="relaxed") // gl.num_programs(0)) & 1023
            cursor = count - 2 - (gl.maximum(count - 1, 0) * mean) // 1024
        last = count - 2
        share = 1024.0 / gl.maximum(count, 1).to(gl.float32)
        mbarrier.wait(work_empty.index(turn & 1), ((turn // 2) & 1) ^ 1)
        _hand_on(work, turn & 1, 0, item)
        _hand_on(work, turn & 1, 1, batch)
        _hand_on(work, turn & 1, 2, head)
        _hand_on(work, turn & 1, 3, row)
        _hand_on(work, turn & 1, 4, gl.maximum(count, 1))
        # A row without a block is one tile of which nothing is seen.
        _hand_on(work, turn & 1, 5, gl.where(count > 0, block, 1 << 20))
        mbarrier.arrive(work_full.index(turn & 1), count=1)
        count = gl.maximum(count, 1)
        next_count = count
        v_block = block
        fresh = True
        while count > 0:
            next_block = gl.load(list_ptr + gl.maximum(cursor, 0))
            cursor = gl.where(cursor > 0, cursor - 1, last)
            mbarrier.wait(used.index(slot), phase)
            mbarrier.expect(k_full.index(slot), k_desc.block_type.nbytes)
            _tma_load(k_desc, [batch, head // group, block * KEYS, 0], k_full.index(slot), k_smem.index(slot))
            slot, phase = _advance(slot, phase, STAGES)
            if fresh:
                for part in gl.static_range(CONSUMERS):
                    at = (turn & 1) * CONSUMERS + part
                    mbarrier.wait(q_empty.index(at), ((turn // 2) & 1) ^ 1)
                    mbarrier.expect(q_full.index(at), q_desc.block_type.nbytes)
                    q_at = [batch, head, row * (64 * CONSUMERS) + part * 64, 0]
                    _tma_load(q_desc, q_at, q_full.index(at), q_smem.index(at))
                # Asked for here, needed for the next item.
                next_count = gl.load(counts_ptr + _line_of(following, items, heads, group, tiles))
                fresh = False
            else:
                # The V before this K. Its slot is free with the next K's.
                mbarrier.wait(used.index(slot), phase)
                mbarrier.expect(v_full.index(v_slot), v_desc.block_type.nbytes)
                _tma_load(
                    v_desc, [batch, head // group, v_block * KEYS, 0], v_full.index(v_slot), v_smem.index(v_slot)
                )
                v_slot = gl.where(v_slot == STAGES - 2, 0, v_slot + 1)
            if SCAN:
                owed += share
                if owed >= 64.0:
                    whole = owed.to(gl.int32)
                    gl.atomic_add(counter_ptr + 1, whole, sem="relaxed")
                    owed -= whole.to(gl.float32)
            v_block = block
            block = next_block
            count -= 1
        ahead, ahead_phase = _advance(slot, phase, STAGES)
        # This V is of the tile before `slot`, as above after the K of `slot`, which comes later here.
        mbarrier.wait(used.index(ahead), ahead_phase)
        mbarrier.expect(v_full.index(v_slot), v_desc.block_type.nbytes)
        _tma_load(v_desc, [batch, head // group, v_block * KEYS, 0], v_full.index(v_slot), v_smem.index(v_slot))
        v_slot = gl.where(v_slot == STAGES - 2, 0, v_slot + 1)
        turn += 1
        item = following
        count = next_count
    mbarrier.wait(work_empty.index(turn & 1), ((turn // 2) & 1) ^ 1)
    _hand_on(work, turn & 1, 0, items)  # no more
    mbarrier.arrive(work_full.index(turn & 1), count=1)


@gluon.jit
def _line_of(item, items, heads, group, tiles):
    """The line of an item in counts; past the last item, the last one's."""
    batch, head, row = _locate(gl.minimum(item, items - 1), heads, group, tiles)
    return _row_of(batch, head, row, heads, tiles)


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
    consumer: gl.constexpr, q_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, v_full, used,
    work, work_full, work_empty,
    o_ptr, lse_ptr, indices_ptr, o_b, o_h, o_n, n, heads, tiles, width, items, scale,
    KEYS: gl.constexpr, HEAD_DIM: gl.constexpr, STAGES: gl.constexpr, CONSUMERS: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = q_desc.dtype
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], warps_per_cta=[4, 1], instr_shape=[16, KEYS, 16])
    O: gl.constexpr = gl.NVMMADistributedLayout([3, 0], warps_per_cta=[4, 1], instr_shape=[16, HEAD_DIM, 16])  # noqa: E741
    P: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=O, k_width=2)
    ROW_S: gl.constexpr = gl.SliceLayout(1, S)
    ROW_O: gl.constexpr = gl.SliceLayout(1, O)
    no_scores = gl.zeros([64, KEYS], gl.float32, S)
    no_output = gl.zeros([64, HEAD_DIM], gl.float32, O)
    lowest = gl.full([64], LOWEST, gl.float32, ROW_S)
    no_sums = _quad_sums(no_scores)

    k_slot = 0
    k_phase = 0
    v_slot = 0
    v_phase = 0
    turn = 1  # the next item's
    mbarrier.wait(work_full.index(0), 0)
    item = _receive(work, 0, 0)
    batch = _receive(work, 0, 1)
    head = _receive(work, 0, 2)
    row = _receive(work, 0, 3)
    count = _receive(work, 0, 4)
    last_block = _receive(work, 0, 5)
    mbarrier.arrive(work_empty.index(0), count=1)
    mbarrier.wait(q_full.index(consumer), 0)
    mbarrier.wait(k_full.index(0), 0)
    q = q_smem.index(consumer).reshape([64, HEAD_DIM])
    s = warpgroup_mma(q, _keys(k_smem, 0, KEYS, HEAD_DIM), no_scores, use_acc=False)
    s = _mask(s, row * (64 * CONSUMERS) + consumer * 64, last_block, KEYS, S)
    p, m, l, shrink = _softmax_step(s, lowest, no_sums, scale)  # noqa: E741
    p = gl.convert_layout(p.to(dtype), P)
    acc = no_output
    mbarrier.arrive(used.index(0), count=1)
    if count > 1:
        k_slot, k_phase = _advance(k_slot, k_phase, STAGES)
        mbarrier.wait(k_full.index(k_slot), k_phase)
    while item < items:
        first = row * (64 * CONSUMERS) + consumer * 64
        list_ptr = indices_ptr + _row_of(batch, head, row, heads, tiles) * width
        place = ((turn & 1) ^ 1) * CONSUMERS + consumer  # of this item's Q
        while count > 1:
            # S of this tile, whose K is there, and P V of the last run on the tensor cores during the softmax.
            count -= 1
            q = q_smem.index(place).reshape([64, HEAD_DIM])
            s = warpgroup_mma(q, _keys(k_smem, k_slot, KEYS, HEAD_DIM), no_scores, use_acc=False, is_async=True)
            mbarrier.wait(v_full.index(v_slot), v_phase)
            acc = warpgroup_mma(p, v_smem.index(v_slot).reshape([KEYS, HEAD_DIM]), acc, is_async=True)
            s = warpgroup_mma_wait(1, deps=[s])
            if 64 * CONSUMERS > KEYS:  # the second tile may cross the diagonal too
                s = _mask(s, first, gl.load(list_ptr + count - 1), KEYS, S)
            p_next, m, l, shrink = _softmax_step(s, m, l, scale)  # noqa: E741
            # The branch in this wait keeps ptxas from moving the end of P V up, before the softmax.
            done = k_slot
            if count > 1:
                k_slot, k_phase = _advance(k_slot, k_phase, STAGES)
            mbarrier.wait(k_full.index(k_slot), k_phase)
            acc = warpgroup_mma_wait(0, deps=[acc])
            mbarrier.arrive(used.index(done), count=1)
            v_slot, v_phase = _advance(v_slot, v_phase, STAGES - 1)
            acc = acc * gl.expand_dims(gl.convert_layout(shrink, ROW_O), 1)
            p = gl.convert_layout(p_next.to(dtype), P)

        # From one item to the next the same: S of the next item's first tile beside P V of this one's last. After
        # the last item the slots hold old tiles, and nobody looks at that S.
        k_slot, k_phase = _advance(k_slot, k_phase, STAGES)
        line = (batch * heads + head).to(gl.int64) * n
        o_base = o_ptr + batch.to(gl.int64) * o_b + head.to(gl.int64) * o_h + first.to(gl.int64) * o_n
        slot = turn & 1
        mbarrier.wait(work_full.index(slot), (turn // 2) & 1)
        item = _receive(work, slot, 0)
        batch = _receive(work, slot, 1)
        head = _receive(work, slot, 2)
        row = _receive(work, slot, 3)
        count = _receive(work, slot, 4)
        last_block = _receive(work, slot, 5)
        mbarrier.arrive(work_empty.index(slot), count=1)
        if item < items:
            mbarrier.wait(q_full.index(slot * CONSUMERS + consumer), (turn // 2) & 1)
            mbarrier.wait(k_full.index(k_slot), k_phase)
        else:
            count = 0
        q = q_smem.index(slot * CONSUMERS + consumer).reshape([64, HEAD_DIM])
        s = warpgroup_mma(q, _keys(k_smem, k_slot, KEYS, HEAD_DIM), no_scores, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(v_slot), v_phase)
        acc = warpgroup_mma(p, v_smem.index(v_slot).reshape([KEYS, HEAD_DIM]), acc, is_async=True)
        s = warpgroup_mma_wait(1, deps=[s])
        s = _mask(s, row * (64 * CONSUMERS) + consumer * 64, last_block, KEYS, S)
        p_next, m_next, l_next, shrink = _softmax_step(s, lowest, no_sums, scale)
        done = k_slot
        if count > 1:
            k_slot, k_phase = _advance(k_slot, k_phase, STAGES)
            mbarrier.wait(k_full.index(k_slot), k_phase)
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(used.index(done), count=1)
        mbarrier.arrive(q_empty.index(place), count=1)
        v_slot, v_phase = _advance(v_slot, v_phase, STAGES - 1)

        total = gl.convert_layout(gl.sum(l, 1), ROW_S, assert_trivial=True)
        seen = total > 0
        total = gl.where(seen, total, 1.0)
        rows = first + gl.arange(0, 64, ROW_S)
        lse = gl.where(seen, (m + gl.log2(total)) / 1.4426950408889634, float("-inf"))
        gl.store(lse_ptr + line + rows, lse, mask=rows < n)
        acc = acc * gl.expand_dims(gl.convert_layout(1.0 / total, ROW_O), 1)
        # For the stores: 8 bytes a thread, 32 contiguous bytes a quad; a transposition within quads, by shuffles.
        WIDE: gl.constexpr = gl.DistributedLinearLayout(
            [[0, 1], [0, 2], [8, 0], [0, 16], [0, 32]] + ([[0, 64]] if HEAD_DIM == 128 else []),
            [[0, 4], [0, 8], [1, 0], [2, 0], [4, 0]],
            [[16, 0], [32, 0]],
            [],
            [64, HEAD_DIM],
        )
        rows = gl.arange(0, 64, gl.SliceLayout(1, WIDE))
        columns = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, WIDE))
        where = gl.expand_dims(rows * o_n, 1) + gl.expand_dims(columns, 0)
        out = gl.convert_layout(acc.to(dtype), WIDE)
        gl.store(o_base + where, out, mask=gl.expand_dims(first + rows < n, 1))
        acc = no_output
        m = m_next
        l = l_next  # noqa: E741
        p = gl.convert_layout(p_next.to(dtype), P)
        turn += 1


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
    SCAN: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = q_desc.dtype
    # Concatenated, since Gluon's parser takes no * in a list.
    q_smem = gl.allocate_shared_memory(dtype, [2 * CONSUMERS] + q_desc.block_shape, q_desc.layout)  # noqa: RUF005
    k_smem = gl.allocate_shared_memory(dtype, [STAGES] + k_desc.block_shape, k_desc.layout)  # noqa: RUF005
    v_smem = gl.allocate_shared_memory(dtype, [STAGES - 1] + v_desc.block_shape, v_desc.layout)  # noqa: RUF005
    q_full = _barriers(2 * CONSUMERS, 1)
    q_empty = _barriers(2 * CONSUMERS, 1)
    k_full = _barriers(STAGES, 1)
    v_full = _barriers(STAGES - 1, 1)
    used = _barriers(STAGES, CONSUMERS)
    work = gl.allocate_shared_memory(gl.int32, [16, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))  # a ring of two
    work_full = _barriers(2, 1)
    work_empty = _barriers(2, CONSUMERS)
    # Written out twice: a list of functions that is put together gives Gluon tensors for the constants in it.
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (_consume, (
                    0, q_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, v_full, used,
                    work, work_full, work_empty,
                    o_ptr, lse_ptr, indices_ptr, o_b, o_h, o_n, n, heads, tiles, width, items, scale,
                    KEYS, HEAD_DIM, STAGES, CONSUMERS,
                )),
                (_consume, (
                    1, q_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, v_full, used,
                    work, work_full, work_empty,
                    o_ptr, lse_ptr, indices_ptr, o_b, o_h, o_n, n, heads, tiles, width, items, scale,
                    KEYS, HEAD_DIM, STAGES, CONSUMERS,
                )),
                (_produce, (
                    q_desc, k_desc, v_desc, q_smem, k_smem, v_smem,
                    q_full, q_empty, k_full, v_full, used, work, work_full, work_empty,
                    counts_ptr, indices_ptr, counter_ptr, heads, group, tiles, width, items,
                    KEYS, STAGES, CONSUMERS, SCAN,
                )),
            ],
            [4, 1],
            [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (_consume, (
                    0, q_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, v_full, used,
                    work, work_full, work_empty,
                    o_ptr, lse_ptr, indices_ptr, o_b, o_h, o_n, n, heads, tiles, width, items, scale,
                    KEYS, HEAD_DIM, STAGES, CONSUMERS,
                )),
                (_produce, (
                    q_desc, k_desc, v_desc, q_smem, k_smem, v_smem,
                    q_full, q_empty, k_full, v_full, used, work, work_full, work_empty,
                    counts_ptr, indices_ptr, counter_ptr, heads, group, tiles, width, items,
                    KEYS, STAGES, CONSUMERS, SCAN,
                )),
            ],
            [1],
            [PRODUCER_REGISTERS],
        )  # fmt: skip
