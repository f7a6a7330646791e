"""Block-sparse attention's forward for Hopper (sm_90), in Gluon.

Computes what triton.py does, from the same lists, and is tested against the same oracle. The work is divided
differently. Programs stay resident and take one work tile after another; a work tile is one row of blocks of one
query head. In a program:

    producer     1 warp. It takes the next work tile from a counter in global memory, goes through its list and has
                 the tensor memory accelerator (TMA) copy tiles of Q, K and V into rings in shared memory. It runs
                 ahead of the consumers, so the epilogue of a work tile overlaps the loads of the next one.
    consumers    2 warpgroups for a block of 128 rows, 1 for a block of 64. Each owns 64 query rows:
                 S = Q K^T and O += P V on the tensor cores (wgmma), softmax on its own registers. P V of a tile
                 runs during the softmax of the next one, and O is rescaled while the next S runs, so the tensor
                 cores have little to wait for; the warpgroups drift apart and fill each other's gaps.

A ring is a number of slots with two barriers each: `full` (the slot was written) and `empty` (all consumers have
read it). A barrier knows its phase only as odd or even, so each side keeps a (slot, phase) per ring. Two consumers
of one program own the two halves of a block, and each tile read serves 128 rows; for blocks of 64 rows, two
programs of one consumer run on each multiprocessor instead. Lists are read from the end: the tile on the diagonal
comes first, and with square blocks the loop needs no mask.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait

from seerbench.core.block_mask import BlockMask, block_count
from seerbench.kernels.block_sparse.triton import flat_lists
from seerbench.kernels.gluon_primitives import (
    Ring,
    barriers,
    descriptor,
    keys_of,
    mask_future,
    multiprocessors,
    tma_load,
)
from seerbench.kernels.primitives import LOG2_E, LOWEST, base_2_scale, program_order

# (block_q, block_k) -> slots of the K ring and of the V ring, each a tile of block_k x 128. A multiprocessor has
# 227 KiB of shared memory, shared by two programs for blocks of 64 rows. 64 rows of Q take 16 KiB, a tile of 64
# keys takes 16 KiB and one of 128 keys 32 KiB.
STAGES = {(64, 64): 3, (128, 64): 6, (128, 128): 3}
# Consumers of a program -> registers per consumer thread. A multiprocessor has 64 Ki registers, for two consumers
# and the producer's warpgroup, or for two programs of one consumer each.
CONSUMER_REGISTERS = {1: 216, 2: 232}
PRODUCER_REGISTERS = 40  # the producer keeps a few addresses and counters only


def launch(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, o: Tensor, lse: Tensor) -> None:
    """Run `_forward` into o [B, Hq, N, D] and lse [B, Hq, N]."""
    batch, heads, n, head_dim = q.shape
    consumers = mask.block_q // 64
    tiles = block_count(n, mask.block_q)
    work_tiles = batch * heads * tiles
    resident = 1 if consumers == 2 else 2  # programs per multiprocessor
    programs = min(work_tiles, resident * multiprocessors(q.device))
    counts, indices, width = flat_lists(mask)
    _forward[(programs,)](
        descriptor(q, 64), descriptor(k, mask.block_k), descriptor(v, mask.block_k), o, lse,
        counts, indices, torch.zeros(1, dtype=torch.int32, device=q.device), *o.stride()[:3],
        n, heads, heads // k.shape[1], tiles, width, work_tiles, base_2_scale(head_dim),
        KEYS=mask.block_k, HEAD_DIM=head_dim, STAGES=STAGES[mask.block_q, mask.block_k], CONSUMERS=consumers,
        CONSUMER_REGISTERS=CONSUMER_REGISTERS[consumers], PRODUCER_REGISTERS=PRODUCER_REGISTERS, num_warps=4,
        **({"maxnreg": 128} if resident == 2 else {}),
    )  # fmt: skip


class Rings(NamedTuple):
    """Rings of a program. Those of Q have one slot per consumer."""

    q: Ring
    k: Ring
    v: Ring
    work: Ring  # two work tiles: see `_push`


class Lists(NamedTuple):
    """Lists of a block mask, as `flat_lists` returns them."""

    counts_ptr: Any
    indices_ptr: Any
    width: Any


class Outputs(NamedTuple):
    """Destination of O and the log-sum-exp: pointers, and O's strides over batch, heads and tokens."""

    o_ptr: Any
    lse_ptr: Any
    o_b: Any
    o_h: Any
    o_n: Any


class Sizes(NamedTuple):
    """Sizes of the problem: tokens, query heads, their number per key/value head, rows of blocks, work tiles."""

    n: Any
    heads: Any
    group: Any
    tiles: Any
    work_tiles: Any


# work tile -> (batch, head, row of blocks)
_locate = gluon.jit(program_order.fn)


@gluon.jit
def _list_of(batch, head, row, sizes):
    """Return the row of counts and indices that belongs to a row of blocks."""
    return (batch * sizes.heads + head).to(gl.int64) * sizes.tiles + row


@gluon.jit
def _advance(slot, phase, STAGES: gl.constexpr):
    """Return the next slot of a ring and the phase of its barriers, which flips when the ring starts again."""
    slot += 1
    last = slot == STAGES
    return gl.where(last, 0, slot), gl.where(last, phase ^ 1, phase)


@gluon.jit
def _push(work, slot, field: gl.constexpr, value):
    """Write one of the three integers by which the producer announces a work tile to the consumers.

    They are its number, its number of key blocks, and its last key block.
    """
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    work.slots.index(slot * 4 + field).store(gl.full([1], value, gl.int32, layout))


@gluon.jit
def _pop(work, slot, field: gl.constexpr):
    """Read, in a consumer, one of the three integers of a work tile that `_push` wrote."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    return gl.max(work.slots.index(slot * 4 + field).load(layout), 0)


@gluon.jit
def _produce(
    descs, rings, lists, counter_ptr, sizes,
    KEYS: gl.constexpr, STAGES: gl.constexpr, CONSUMERS: gl.constexpr,
):  # fmt: skip
    """Load the tiles of one work tile after another."""
    q_desc, k_desc, v_desc = descs
    q, k, v, work = rings
    slot = 0  # of the rings of K and V: K and V of a tile are in the same slot
    phase = 1
    iteration = 0  # work tiles pushed so far
    loaded = 0  # how many of them read anything
    work_tile = gl.program_id(0)
    while work_tile < sizes.work_tiles:
        # Requested here, and needed when the loads of this work tile are all under way.
        next_work_tile = gl.num_programs(0) + gl.atomic_add(counter_ptr, 1, sem="relaxed")
        batch, head, row = _locate(work_tile, sizes.tiles, sizes.heads, sizes.group)
        list_row = _list_of(batch, head, row, sizes)
        list_ptr = lists.indices_ptr + list_row * lists.width
        count = gl.load(lists.counts_ptr + list_row)
        block = gl.load(list_ptr + gl.maximum(count - 1, 0))
        mbarrier.wait(work.empty.index(iteration & 1), ((iteration // 2) & 1) ^ 1)
        _push(work, iteration & 1, 0, work_tile)
        _push(work, iteration & 1, 1, count)
        _push(work, iteration & 1, 2, block)
        mbarrier.arrive(work.full.index(iteration & 1), count=1)
        first = True
        while count > 0:
            next_block = gl.load(list_ptr + gl.maximum(count - 2, 0))
            at = [batch, head // sizes.group, block * KEYS, 0]
            mbarrier.wait(k.empty.index(slot), phase)
            mbarrier.expect(k.full.index(slot), k_desc.block_type.nbytes)
            tma_load(k_desc, at, k.full.index(slot), k.slots.index(slot))
            if first:
                # Q follows the first K, whose load runs while the consumers still use the Q before.
                for consumer in gl.static_range(CONSUMERS):
                    mbarrier.wait(q.empty.index(consumer), (loaded & 1) ^ 1)
                    mbarrier.expect(q.full.index(consumer), q_desc.block_type.nbytes)
                    q_at = [batch, head, row * (64 * CONSUMERS) + consumer * 64, 0]
                    tma_load(q_desc, q_at, q.full.index(consumer), q.slots.index(consumer))
                first = False
                loaded += 1
            mbarrier.wait(v.empty.index(slot), phase)
            mbarrier.expect(v.full.index(slot), v_desc.block_type.nbytes)
            tma_load(v_desc, at, v.full.index(slot), v.slots.index(slot))
            count -= 1
            block = next_block
            slot, phase = _advance(slot, phase, STAGES)
        iteration += 1
        work_tile = next_work_tile
    mbarrier.wait(work.empty.index(iteration & 1), ((iteration // 2) & 1) ^ 1)
    _push(work, iteration & 1, 0, sizes.work_tiles)  # tells the consumers to stop
    mbarrier.arrive(work.full.index(iteration & 1), count=1)


@gluon.jit
def _softmax_step(s, row_max, row_sum, scale):
    """Take scores s [64, KEYS] into the online softmax; return (p, row_max, row_sum, alpha), as softmax_step does.

    row_sum [64, 4] has one sum per thread of the quad that holds a row, so only the maximum is shuffled here.
    """
    new_max = gl.maximum(row_max, gl.max(s, 1) * scale)
    p = gl.exp2(s * scale - gl.expand_dims(new_max, 1))
    alpha = gl.exp2(row_max - new_max)
    alpha_of_sum = gl.convert_layout(alpha, gl.SliceLayout(1, row_sum.type.layout), assert_trivial=True)
    return p, new_max, row_sum * gl.expand_dims(alpha_of_sum, 1) + _quad_sums(p), alpha


@gluon.jit
def _quad_sums(p):
    """Return sums [64, 4] of p [64, KEYS]: a thread of the quad holds 2 of each 8 columns and sums all it has."""
    return gl.sum(gl.sum(p.reshape([64, p.shape[1] // 8, 4, 2]), 3), 1)


@gluon.jit
def _consume(
    consumer: gl.constexpr, rings, lists, outputs, sizes, scale,
    KEYS: gl.constexpr, HEAD_DIM: gl.constexpr, STAGES: gl.constexpr, CONSUMERS: gl.constexpr,
):  # fmt: skip
    """Compute 64 rows of one work tile after another."""
    q_ring, k_ring, v_ring, work = rings
    dtype: gl.constexpr = q_ring.slots.dtype
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], warps_per_cta=[4, 1], instr_shape=[16, KEYS, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], warps_per_cta=[4, 1], instr_shape=[16, HEAD_DIM, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=O_LAYOUT, k_width=2)
    S_ROWS: gl.constexpr = gl.SliceLayout(1, S_LAYOUT)
    O_ROWS: gl.constexpr = gl.SliceLayout(1, O_LAYOUT)
    q = q_ring.slots.index(consumer).reshape([64, HEAD_DIM])
    no_scores = gl.zeros([64, KEYS], gl.float32, S_LAYOUT)

    k_slot = 0
    k_phase = 0
    v_slot = 0
    v_phase = 0
    iteration = 0  # work tiles popped so far
    loaded = 0  # how many of them read anything
    mbarrier.wait(work.full.index(0), 0)
    work_tile = _pop(work, 0, 0)
    while work_tile < sizes.work_tiles:
        batch, head, row = _locate(work_tile, sizes.tiles, sizes.heads, sizes.group)
        first = row * (64 * CONSUMERS) + consumer * 64  # this consumer's first query
        count = _pop(work, iteration & 1, 1)
        last_block = _pop(work, iteration & 1, 2)
        mbarrier.arrive(work.empty.index(iteration & 1), count=1)
        list_ptr = lists.indices_ptr + _list_of(batch, head, row, sizes) * lists.width
        row_max = gl.full([64], LOWEST, gl.float32, S_ROWS)
        row_sum = _quad_sums(no_scores)  # [64, 4]
        acc = gl.zeros([64, HEAD_DIM], gl.float32, O_LAYOUT)
        if count > 0:
            mbarrier.wait(q_ring.full.index(consumer), loaded & 1)
            loaded += 1
            mbarrier.wait(k_ring.full.index(k_slot), k_phase)
            s = warpgroup_mma(q, keys_of(k_ring, k_slot, KEYS, HEAD_DIM), no_scores, use_acc=False)  # [64, KEYS]
            mbarrier.arrive(k_ring.empty.index(k_slot), count=1)
            s = mask_future(s, first, last_block, KEYS, S_LAYOUT)
            p, row_max, row_sum, alpha = _softmax_step(s, row_max, row_sum, scale)
            p = gl.convert_layout(p.to(dtype), P_LAYOUT)
            if count > 1:
                k_slot, k_phase = _advance(k_slot, k_phase, STAGES)
                mbarrier.wait(k_ring.full.index(k_slot), k_phase)
            while count > 1:
                # S of this tile, whose K is there, and P V of the tile before run on the tensor cores during the
                # softmax.
                count -= 1
                k = keys_of(k_ring, k_slot, KEYS, HEAD_DIM)
                s = warpgroup_mma(q, k, no_scores, use_acc=False, is_async=True)
                # O is rescaled while S is computed, not before.
                acc = _scale_here(acc, gl.expand_dims(gl.convert_layout(alpha, O_ROWS), 1))
                mbarrier.wait(v_ring.full.index(v_slot), v_phase)
                acc = warpgroup_mma(p, v_ring.slots.index(v_slot).reshape([KEYS, HEAD_DIM]), acc, is_async=True)
                s = warpgroup_mma_wait(1, deps=[s])
                if 64 * CONSUMERS > KEYS:  # the second tile may cross the diagonal too
                    s = mask_future(s, first, gl.load(list_ptr + count - 1), KEYS, S_LAYOUT)
                p_next, row_max, row_sum, alpha = _softmax_step(s, row_max, row_sum, scale)
                # P is rounded while P V is computed, so the next S need not wait for it.
                p_next = gl.convert_layout(_round_here(p_next, dtype), P_LAYOUT)
                # The next tile's K is waited for here and not where it is used: the branch in a wait keeps ptxas
                # from moving the end of P V up, before the softmax, which would undo the overlap (seen in the SASS
                # of Triton 3.6's ptxas). After the last tile the wait is for this tile's K, which has arrived.
                used = k_slot
                if count > 1:
                    k_slot, k_phase = _advance(k_slot, k_phase, STAGES)
                mbarrier.wait(k_ring.full.index(k_slot), k_phase)
                acc = warpgroup_mma_wait(0, deps=[acc])
                mbarrier.arrive(k_ring.empty.index(used), count=1)
                mbarrier.arrive(v_ring.empty.index(v_slot), count=1)
                v_slot, v_phase = _advance(v_slot, v_phase, STAGES)
                p = p_next
            k_slot, k_phase = _advance(k_slot, k_phase, STAGES)
            mbarrier.arrive(q_ring.empty.index(consumer), count=1)
            acc = _scale_here(acc, gl.expand_dims(gl.convert_layout(alpha, O_ROWS), 1))
            mbarrier.wait(v_ring.full.index(v_slot), v_phase)
            acc = warpgroup_mma(p, v_ring.slots.index(v_slot).reshape([KEYS, HEAD_DIM]), acc)
            mbarrier.arrive(v_ring.empty.index(v_slot), count=1)
            v_slot, v_phase = _advance(v_slot, v_phase, STAGES)

        _store(acc, row_max, row_sum, batch, head, first, outputs, sizes, dtype, HEAD_DIM)
        iteration += 1
        mbarrier.wait(work.full.index(iteration & 1), (iteration // 2) & 1)
        work_tile = _pop(work, iteration & 1, 0)


@gluon.jit
def _store(acc, row_max, row_sum, batch, head, first, outputs, sizes, dtype: gl.constexpr, HEAD_DIM: gl.constexpr):
    """Normalise and write O [64, HEAD_DIM] and the log-sum-exp of the rows from `first` on."""
    o_ptr, lse_ptr, o_b, o_h, o_n = outputs
    n = sizes.n
    O_ROWS: gl.constexpr = gl.SliceLayout(1, acc.type.layout)
    S_ROWS: gl.constexpr = row_max.type.layout
    # O's layout for the stores: a quad writes 32 contiguous bytes, a whole sector, where wgmma's layout would write
    # 16. Elements move only between the threads of a quad, by shuffles.
    WIDE: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [8, 0], [0, 16], [0, 32]] + ([[0, 64]] if HEAD_DIM == 128 else []),
        [[0, 4], [0, 8], [1, 0], [2, 0], [4, 0]],
        [[16, 0], [32, 0]],
        [],
        [64, HEAD_DIM],
    )
    total = gl.convert_layout(gl.sum(row_sum, 1), S_ROWS, assert_trivial=True)
    seen = total > 0  # a row without a key gets zeros, and a log-sum-exp of -inf
    total = gl.where(seen, total, 1.0)
    rows = first + gl.arange(0, 64, S_ROWS)
    lse = gl.where(seen, (row_max + gl.log2(total)) / LOG2_E, float("-inf"))
    gl.store(lse_ptr + (batch * sizes.heads + head).to(gl.int64) * n + rows, lse, mask=rows < n)
    acc = acc * gl.expand_dims(gl.convert_layout(1.0 / total, O_ROWS), 1)
    rows = gl.arange(0, 64, gl.SliceLayout(1, WIDE))
    columns = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, WIDE))
    o_base = o_ptr + batch.to(gl.int64) * o_b + head.to(gl.int64) * o_h + first.to(gl.int64) * o_n
    where = gl.expand_dims(rows * o_n, 1) + gl.expand_dims(columns, 0)
    out = gl.convert_layout(acc.to(dtype), WIDE)
    gl.store(o_base + where, out, mask=gl.expand_dims(first + rows < n, 1))


@gluon.jit
def _scale_here(x, factor):
    """Return x * factor, in fp32. LLVM moves a plain product up, before the wgmma that it should overlap."""
    x, factor = gl.broadcast(x, factor)
    return gl.inline_asm_elementwise(
        "mul.f32 $0, $1, $2;", "=f,f,f", [x, factor], dtype=gl.float32, is_pure=False, pack=1
    )


@gluon.jit
def _round_here(x, dtype: gl.constexpr):
    """Return x in dtype, two elements per instruction.

    LLVM moves a plain conversion down behind the wait, into the next tile's iteration.
    """
    if dtype == gl.bfloat16:
        rounded = gl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [x], dtype=gl.bfloat16, is_pure=False, pack=2
        )
    else:
        rounded = gl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [x], dtype=gl.float16, is_pure=False, pack=2
        )
    return rounded


@gluon.jit(do_not_specialize=["n", "heads", "group", "tiles", "width", "work_tiles"])
def _forward(
    q_desc, k_desc, v_desc, o_ptr, lse_ptr, counts_ptr, indices_ptr, counter_ptr, o_b, o_h, o_n,
    n, heads, group, tiles, width, work_tiles, scale,
    KEYS: gl.constexpr, HEAD_DIM: gl.constexpr, STAGES: gl.constexpr, CONSUMERS: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = q_desc.dtype
    # Concatenated, since Gluon's parser takes no * in a list.
    q_slots = gl.allocate_shared_memory(dtype, [CONSUMERS] + q_desc.block_shape, q_desc.layout)  # noqa: RUF005
    k_slots = gl.allocate_shared_memory(dtype, [STAGES] + k_desc.block_shape, k_desc.layout)  # noqa: RUF005
    v_slots = gl.allocate_shared_memory(dtype, [STAGES] + v_desc.block_shape, v_desc.layout)  # noqa: RUF005
    q = Ring(q_slots, barriers(CONSUMERS, 1), barriers(CONSUMERS, 1))
    k = Ring(k_slots, barriers(STAGES, 1), barriers(STAGES, CONSUMERS))
    v = Ring(v_slots, barriers(STAGES, 1), barriers(STAGES, CONSUMERS))
    # Two work tiles of 4 integers, of which 3 are used.
    work_slots = gl.allocate_shared_memory(gl.int32, [8, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    work = Ring(work_slots, barriers(2, 1), barriers(2, CONSUMERS))
    rings = Rings(q, k, v, work)
    descs = (q_desc, k_desc, v_desc)
    lists = Lists(counts_ptr, indices_ptr, width)
    outputs = Outputs(o_ptr, lse_ptr, o_b, o_h, o_n)
    sizes = Sizes(n, heads, group, tiles, work_tiles)
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (_consume, (0, rings, lists, outputs, sizes, scale, KEYS, HEAD_DIM, STAGES, CONSUMERS)),
                (_consume, (1, rings, lists, outputs, sizes, scale, KEYS, HEAD_DIM, STAGES, CONSUMERS)),
                (_produce, (descs, rings, lists, counter_ptr, sizes, KEYS, STAGES, CONSUMERS)),
            ],
            [4, 1],
            [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )
    else:
        gl.warp_specialize(
            [
                (_consume, (0, rings, lists, outputs, sizes, scale, KEYS, HEAD_DIM, STAGES, CONSUMERS)),
                (_produce, (descs, rings, lists, counter_ptr, sizes, KEYS, STAGES, CONSUMERS)),
            ],
            [1],
            [PRODUCER_REGISTERS],
        )
