"""Pooled attention for Hopper (sm_90): the training kernel in Gluon, in one pass.

Computes what the two passes of triton.py do, and is tested against the same oracle. The forward is built as that of
block_sparse/hopper.py is, which should be read first (producer warp, two consumer warpgroups of 64 query rows,
resident programs). It goes over every causal tile of 128 x 128, without lists, so the work of a work tile (one row
of tiles of one query head) is known beforehand and the schedule is fixed. What is added:

    in the loop      the softmax needs the largest raw score of each row of a tile anyway. It is taken per block of
                     64 keys and stored in a scratch that belongs to the consumer: 64 fp32 row maxima per block,
                     for one row of the map. The scratch is used again for each work tile.
    after the loop   the row's log-sum-exp is final, and the maxima are read back as one row of the map:
                         D[I, J] = exp2(max_r (scale * s_rJ - lse_r)).

Raw scores are stored, not scores relative to a running maximum, so nothing stored has to be corrected later. The 64
rows of a consumer are one row of the map: the two consumers never wait for each other. Blocks of 128 are the
maximum of two key blocks, taken here, and of two rows of the map, taken by torch afterwards.

The scratch takes no memory of its own: it is inside O. At 128k it is 1 MiB per program, the size of the output of
32 work tiles. Each program therefore reserves 32 short work tiles, known from the start (`schedule`), does them
last, and uses the memory of their output as its scratch until it writes it. O of one head, in rows of tiles, for
two programs on that head (stride = 2) with three chunks each:

    row of tiles    0        1        2        3        4        5        6        7   ...
                 +--------+--------+--------+--------+--------+--------+--------+--------
                 | p0 c0  | p1 c0  | p0 c1  | p1 c1  | p0 c2  | p1 c2  | shared work tiles,
                 +--------+--------+--------+--------+--------+--------+  done first
      last work tiles of p0: row 4 (its output overwrites c2), row 2 (c1), row 0 (c0)

No other program touches these rows of O, and each consumer uses only its own 64 of the 128 rows, so only program
order within a warpgroup matters. A program processes its reserved work tiles from longest to shortest; writing the
output of one frees one chunk, and the remaining chunks always suffice:

    chunk c is in row of tiles  c * stride + o,  0 <= o < stride, and holds the maxima of HEAD_DIM / 4 tiles;
    that row has  c * stride + o + 1 <= (c + 1) * stride <= (c + 1) * HEAD_DIM / 4  tiles, what chunks 0 to c hold.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait
from triton.language import debug_barrier as barrier

from seerbench.core.block_mask import block_count
from seerbench.kernels.gluon_primitives import (
    Ring,
    barriers,
    descriptor,
    keys_of,
    mask_future,
    multiprocessors,
    tma_load,
)
from seerbench.kernels.primitives import LOG2_E, LOWEST, base_2_scale, tma_readable

STAGES = 3  # slots in each of the rings of K and V: a tile of 128 x 128 takes 32 KiB, and Q takes 32 of 227 KiB
# Registers per thread, as in block_sparse/hopper.py: two consumers and the producer's warpgroup share 64 Ki.
CONSUMER_REGISTERS, PRODUCER_REGISTERS = 232, 40


def pooled_attention(q: Tensor, k: Tensor, v: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (o, lse, d) as `api.pooled_attention` does, for head_dim 64 or 128 and blocks of 64 or 128."""
    q, k, v = map(tma_readable, (q, k, v))
    batch, heads, n, _ = q.shape
    o = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], device=q.device)
    columns = block_count(n, block)
    d = torch.empty(batch, heads, columns * (block // 64), columns, dtype=q.dtype, device=q.device)
    launch(q, k, v, o, lse, d)
    return o, lse, d if block == 64 else d.unflatten(-2, (-1, 2)).amax(-2)


class Rings(NamedTuple):
    """Rings of a program. That of Q has one slot per consumer."""

    q: Ring
    k: Ring
    v: Ring


class Outputs(NamedTuple):
    """Pointers to O, the log-sum-exp and the map, O's strides over batch, heads and tokens, and the map's size."""

    o_ptr: Any
    lse_ptr: Any
    d_ptr: Any
    o_b: Any
    o_h: Any
    o_n: Any
    d_rows: Any
    d_columns: Any


class Scratch(NamedTuple):
    """Memory of O seen as fp32: pointer, and strides over batch, heads and tokens."""

    ptr: Any
    s_b: Any
    s_h: Any
    s_n: Any


class Sizes(NamedTuple):
    """Tokens, heads over the batch, query heads, heads per key/value head, rows of tiles; chunks and their
    stride."""

    n: Any
    batch_heads: Any
    heads: Any
    group: Any
    tiles: Any
    chunks: Any
    stride: Any


class Schedule(NamedTuple):
    """Assignment of work tiles, and of rows of O as scratch, to programs; `locate` applies it."""

    programs: int
    chunks: int  # rows of tiles of O that are a program's scratch, and its last work tiles
    stride: int  # rows of tiles from one chunk of a program to the next; at most this many programs share a head


def schedule(heads: int, n: int, head_dim: int, multiprocessors: int) -> Schedule:
    """Return the schedule for `heads` query heads, counted over the batch, and n >= 128 tokens.

    There is one program per multiprocessor, or fewer if O has too few whole tiles for their scratch: at 128k, 128
    programs for 4 heads of head_dim 128 and 32 for one head. With few heads most work tiles are reserved by some
    program, and the shares of work are less even: the largest is 1.45 times the mean for 4 heads at 8k, 1.02 for
    32.
    """
    tiles, whole_tiles = block_count(n, 128), n // 128
    chunks = block_count(tiles, head_dim // 4)
    programs = min(multiprocessors, heads * (whole_tiles // chunks))
    return Schedule(programs, chunks, block_count(programs, heads))


def launch(q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, d: Tensor) -> None:
    """Run `_forward` into o, lse and d.

    d: contiguous, [B, Hq, r, c], rows over blocks of 64 queries, r >= ceil(N / 64), and columns over blocks of
    64 keys where c = ceil(N / 64), of 128 where c = ceil(N / 128).
    """
    batch, heads, n, head_dim = q.shape
    # An O of less than one tile has no room for a scratch.
    scratch = o if n >= 128 else o.new_empty(batch, heads, 128, head_dim)
    programs, chunks, stride = schedule(batch * heads, max(n, 128), head_dim, multiprocessors(q.device))
    block = 64 if d.shape[-1] == block_count(n, 64) else 128
    _forward[(programs,)](
        descriptor(q, 64), descriptor(k, 128), descriptor(v, 128), o, lse, d, scratch.view(torch.float32),
        *o.stride()[:3], *(step // 2 for step in scratch.stride()[:3]),
        n, batch * heads, heads, heads // k.shape[1], block_count(n, 128), *d.shape[-2:], chunks, stride,
        base_2_scale(head_dim),
        HEAD_DIM=head_dim, BLOCK=block, STAGES=STAGES,
        CONSUMER_REGISTERS=CONSUMER_REGISTERS, PRODUCER_REGISTERS=PRODUCER_REGISTERS, num_warps=4,
    )  # fmt: skip


@gluon.jit
def iterations_of(program, programs, batch_heads, tiles, chunks):
    """Return a program's number of shared work tiles, and that number plus its reserved ones."""
    shared = batch_heads * tiles - programs * chunks
    rounds = shared // programs
    place = program if rounds % 2 == 0 else programs - 1 - program
    if rounds * programs + place < shared:
        rounds += 1
    return rounds, rounds + chunks


@gluon.jit
def locate(iteration, shared, program, programs, batch_heads, group, tiles, chunks, stride):
    """Return (batch_head: batch * Hq + head, row of tiles) of the work tile that a program takes in an iteration.

    Rounds go through the programs forwards and backwards in turn. Work tiles come longest first, and the first
    program would otherwise get the longest of every round.

    Long work tiles, rows chunks * stride and up: query heads of a group side by side, then rows, then key/value
    heads. The K and V in use at one time then belong to one head and stay in L2. Rows go from the longest down and,
    for every other key/value head, back up: the number of work tiles of a head can be near a multiple of the number
    of programs, and some programs would then get the longest of every head.

    Short work tiles: owner o has row c * stride + o // batch_heads of head o % batch_heads for each of its chunks
    c. Owners from `programs` on do not exist, and their work tiles are shared. A program does its reserved work
    tiles last, from the longest down.
    """
    work_tile = iteration * programs + (program if iteration % 2 == 0 else programs - 1 - program)
    short = chunks * stride
    long = batch_heads * (tiles - short)
    if iteration < shared and work_tile < long:
        kv = work_tile // (group * (tiles - short))
        rest = work_tile % (group * (tiles - short))
        up = (batch_heads // group - 1 - kv) % 2  # the rows of the last head go down
        step = rest // group
        row = short + step if up == 1 else tiles - 1 - step
        batch_head = kv * group + rest % group
    else:
        work_tile -= long
        owner = programs + work_tile // chunks
        chunk = work_tile % chunks
        if iteration >= shared:
            owner = program
            chunk = chunks - 1 - (iteration - shared)
        batch_head = owner % batch_heads
        row = chunk * stride + owner // batch_heads
    return batch_head, row


@gluon.jit
def _locate_in(iteration, shared, sizes):
    """Return what `locate` does for this program."""
    return locate(
        iteration, shared, gl.program_id(0), gl.num_programs(0),
        sizes.batch_heads, sizes.group, sizes.tiles, sizes.chunks, sizes.stride,
    )  # fmt: skip


@gluon.jit
def scratch_start(program, batch_heads, heads, s_b, s_h, s_n, consumer):
    """Return where a consumer's scratch begins in O seen as fp32: its half of the program's chunk 0."""
    batch_head = program % batch_heads
    token = program // batch_heads * 128 + consumer * 64
    return batch_head // heads * s_b + batch_head % heads * s_h + token * s_n


@gluon.jit
def block_offset(block, s_n, s_chunk, HEAD_DIM: gl.constexpr):
    """Return the offset in a scratch of the 64 row maxima of a block of 64 keys.

    A row of O holds HEAD_DIM / 2 maxima, and half a chunk, 64 rows of O, those of HEAD_DIM / 2 blocks.
    """
    return block // (HEAD_DIM // 2) * s_chunk + block % (HEAD_DIM // 2) * (128 // HEAD_DIM * s_n)


@gluon.jit
def row_offset(row, s_n, HEAD_DIM: gl.constexpr):
    """Return the offset, within the maxima of a block, of the maximum of one of the 64 rows."""
    return row // (HEAD_DIM // 2) * s_n + row % (HEAD_DIM // 2)


@gluon.jit
def _produce(
    descs, rings, sizes, STAGES: gl.constexpr,
):  # fmt: skip
    """Load the tiles of one work tile after another."""
    q_desc, k_desc, v_desc = descs
    q, k, v = rings
    program = gl.program_id(0)
    programs = gl.num_programs(0)
    shared, iterations = iterations_of(program, programs, sizes.batch_heads, sizes.tiles, sizes.chunks)
    step = 0  # tiles put into the rings so far, over all work tiles
    for iteration in range(iterations):
        batch_head, row = _locate_in(iteration, shared, sizes)
        batch = batch_head // sizes.heads
        head = batch_head % sizes.heads
        for back in range(row + 1):
            slot = step % STAGES
            phase = (step // STAGES & 1) ^ 1
            at = [batch, head // sizes.group, (row - back) * 128, 0]
            mbarrier.wait(k.empty.index(slot), phase)
            mbarrier.expect(k.full.index(slot), k_desc.block_type.nbytes)
            tma_load(k_desc, at, k.full.index(slot), k.slots.index(slot))
            if back == 0:
                # Q follows the first K, whose load runs while the consumers still use the Q before.
                for half in gl.static_range(2):
                    mbarrier.wait(q.empty.index(half), (iteration & 1) ^ 1)
                    mbarrier.expect(q.full.index(half), q_desc.block_type.nbytes)
                    q_at = [batch, head, row * 128 + half * 64, 0]
                    tma_load(q_desc, q_at, q.full.index(half), q.slots.index(half))
            mbarrier.wait(v.empty.index(slot), phase)
            mbarrier.expect(v.full.index(slot), v_desc.block_type.nbytes)
            tma_load(v_desc, at, v.full.index(slot), v.slots.index(slot))
            step += 1


@gluon.jit
def _softmax_step(s, row_max, row_sum, scale, maxima, tile, s_n, s_chunk, HEAD_DIM: gl.constexpr):
    """Take scores s [64, 128] into the online softmax, and store the row maxima of each block of 64 keys.

    maxima: pointers [64] to the scratch. Returns (p, row_max, row_sum, alpha), as primitives.softmax_step does.
    """
    halves = gl.max(s.reshape([64, 2, 64]), 2)  # in registers: a thread holds columns of both halves
    left, right = gl.split(halves)
    left = gl.convert_layout(left, row_max.type.layout, assert_trivial=True)
    right = gl.convert_layout(right, row_max.type.layout, assert_trivial=True)
    maxima += block_offset(2 * tile, s_n, s_chunk, HEAD_DIM)
    gl.store(maxima, left)
    gl.store(maxima + 128 // HEAD_DIM * s_n, right)  # the block after an even one is in the same chunk
    new_max = gl.maximum(row_max, gl.maximum(left, right) * scale)
    p = gl.exp2(s * scale - gl.expand_dims(new_max, 1))
    alpha = gl.exp2(row_max - new_max)
    return p, new_max, row_sum * alpha + gl.sum(p, 1), alpha


@gluon.jit
def _consume(
    consumer: gl.constexpr, rings, outputs, scratch, sizes, scale,
    HEAD_DIM: gl.constexpr, BLOCK: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Compute 64 rows of O, and a row of the map, of one work tile after another."""
    q_ring, k_ring, v_ring = rings
    o_ptr, lse_ptr, d_ptr, o_b, o_h, o_n, d_rows, d_columns = outputs
    scratch_ptr, s_b, s_h, s_n = scratch
    n = sizes.n
    heads = sizes.heads
    dtype: gl.constexpr = q_ring.slots.dtype
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], warps_per_cta=[4, 1], instr_shape=[16, HEAD_DIM, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=O_LAYOUT, k_width=2)
    S_ROWS: gl.constexpr = gl.SliceLayout(1, S_LAYOUT)
    O_ROWS: gl.constexpr = gl.SliceLayout(1, O_LAYOUT)
    q = q_ring.slots.index(consumer).reshape([64, HEAD_DIM])
    no_scores = gl.zeros([64, 128], gl.float32, S_LAYOUT)
    local_rows = gl.arange(0, 64, S_ROWS)
    program = gl.program_id(0)
    programs = gl.num_programs(0)
    shared, iterations = iterations_of(program, programs, sizes.batch_heads, sizes.tiles, sizes.chunks)
    s_chunk = sizes.stride.to(gl.int64) * 128 * s_n  # from one chunk of the scratch to the next
    scratch_ptr += scratch_start(program.to(gl.int64), sizes.batch_heads, heads, s_b, s_h, s_n, consumer)
    maxima = scratch_ptr + row_offset(local_rows, s_n, HEAD_DIM)

    step = 0
    for iteration in range(iterations):
        batch_head, row = _locate_in(iteration, shared, sizes)
        first = row * 128 + consumer * 64
        row_max = gl.full([64], LOWEST, gl.float32, S_ROWS)
        row_sum = gl.zeros([64], gl.float32, S_ROWS)
        acc = gl.zeros([64, HEAD_DIM], gl.float32, O_LAYOUT)
        mbarrier.wait(q_ring.full.index(consumer), iteration & 1)
        slot = step % STAGES
        phase = step // STAGES & 1
        mbarrier.wait(k_ring.full.index(slot), phase)
        s = warpgroup_mma(q, keys_of(k_ring, slot, 128, HEAD_DIM), no_scores, use_acc=False)
        mbarrier.arrive(k_ring.empty.index(slot), count=1)
        s = mask_future(s, first, row, 128, S_LAYOUT)  # the tile on the diagonal is the only one that needs it
        p, row_max, row_sum, alpha = _softmax_step(s, row_max, row_sum, scale, maxima, row, s_n, s_chunk, HEAD_DIM)
        p = gl.convert_layout(p.to(dtype), P_LAYOUT)
        for back in range(row):
            # S of this tile and P V of the tile before run on the tensor cores during the softmax.
            v_slot = slot
            v_phase = phase
            v = v_ring.slots.index(v_slot).reshape([128, HEAD_DIM])
            step += 1
            slot = step % STAGES
            phase = step // STAGES & 1
            mbarrier.wait(k_ring.full.index(slot), phase)
            k = keys_of(k_ring, slot, 128, HEAD_DIM)
            s = warpgroup_mma(q, k, no_scores, use_acc=False, is_async=True)
            mbarrier.wait(v_ring.full.index(v_slot), v_phase)
            acc = warpgroup_mma(p, v, acc, is_async=True)
            s = warpgroup_mma_wait(1, deps=[s])
            mbarrier.arrive(k_ring.empty.index(slot), count=1)
            p_next, row_max, row_sum, alpha = _softmax_step(
                s, row_max, row_sum, scale, maxima, row - 1 - back, s_n, s_chunk, HEAD_DIM
            )
            # This slot has been full for long. The branch in the wait keeps ptxas from moving the next line up,
            # before the softmax, which would undo the overlap (as in block_sparse/hopper.py).
            mbarrier.wait(v_ring.full.index(v_slot), v_phase)
            acc = warpgroup_mma_wait(0, deps=[acc])
            mbarrier.arrive(v_ring.empty.index(v_slot), count=1)
            acc = acc * gl.expand_dims(gl.convert_layout(alpha, O_ROWS), 1)
            p = gl.convert_layout(p_next.to(dtype), P_LAYOUT)
        mbarrier.arrive(q_ring.empty.index(consumer), count=1)
        mbarrier.wait(v_ring.full.index(slot), phase)
        acc = warpgroup_mma(p, v_ring.slots.index(slot).reshape([128, HEAD_DIM]), acc)
        mbarrier.arrive(v_ring.empty.index(slot), count=1)
        step += 1

        lse = row_max + gl.log2(row_sum)
        batch_head_64 = batch_head.to(gl.int64)
        gl.store(lse_ptr + batch_head_64 * n + first + local_rows, lse / LOG2_E, mask=first + local_rows < n)
        # A row past the end has a probability of exp2(-inf) everywhere.
        lse = gl.where(first + local_rows < n, lse, float("inf"))
        block = row * 2 + consumer
        # The map comes before O, whose rows may be scratch.
        barrier()  # the maxima were stored by other threads of this warpgroup
        if block < d_rows:
            d_row = d_ptr + (batch_head_64 * d_rows + block) * d_columns
            _write_map(d_row, block, d_columns, scratch_ptr, lse, scale, s_n, s_chunk, HEAD_DIM, BLOCK)
        barrier()  # every maximum was read: O may be written there, and the next work tile's maxima

        acc = acc * gl.expand_dims(gl.convert_layout(1.0 / row_sum, O_ROWS), 1)
        rows = gl.arange(0, 64, O_ROWS)
        columns = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, O_LAYOUT))
        o_base = o_ptr + (batch_head // heads).to(gl.int64) * o_b + (batch_head % heads).to(gl.int64) * o_h
        o_base += first.to(gl.int64) * o_n
        where = gl.expand_dims(rows * o_n, 1) + gl.expand_dims(columns, 0)
        gl.store(o_base + where, acc.to(dtype), mask=gl.expand_dims(first + rows < n, 1))


@gluon.jit
def _write_map(
    d_ptr, block, d_columns, scratch_ptr, lse, scale, s_n, s_chunk, HEAD_DIM: gl.constexpr, BLOCK: gl.constexpr
):
    """Write one row of the map to d_ptr, from the row maxima in the scratch and lse [64] in base 2."""
    # A quad of threads takes one column, 64 values; a load is 16 bytes.
    LAYOUT: gl.constexpr = gl.BlockedLayout([4, 1], [4, 8], [1, 4], [0, 1])
    rows = gl.expand_dims(gl.arange(0, 64, gl.SliceLayout(1, LAYOUT)), 1)
    scratch = scratch_ptr + row_offset(rows, s_n, HEAD_DIM)
    lse = gl.expand_dims(gl.convert_layout(lse, gl.SliceLayout(1, LAYOUT)), 1)
    for start in range(0, d_columns, 128):
        columns = start + gl.arange(0, 128, gl.SliceLayout(0, LAYOUT))
        maxima = gl.full([64, 128], float("-inf"), gl.float32, LAYOUT)
        for part in gl.static_range(BLOCK // 64):
            keys = gl.expand_dims(columns * (BLOCK // 64) + part, 0)
            # Above the diagonal nothing was stored, and the map is exp2(-inf) = 0.
            at = scratch + block_offset(keys, s_n, s_chunk, HEAD_DIM)
            maxima = gl.maximum(maxima, gl.load(at, mask=keys <= block, other=float("-inf")))
        d = gl.exp2(gl.max(maxima * scale - lse, 0))
        gl.store(d_ptr + columns, d.to(d_ptr.dtype.element_ty), mask=columns < d_columns)


@gluon.jit(
    do_not_specialize=["n", "batch_heads", "heads", "group", "tiles", "d_rows", "d_columns", "chunks", "stride"]
)
def _forward(
    q_desc, k_desc, v_desc, o_ptr, lse_ptr, d_ptr, scratch_ptr, o_b, o_h, o_n, s_b, s_h, s_n,
    n, batch_heads, heads, group, tiles, d_rows, d_columns, chunks, stride, scale,
    HEAD_DIM: gl.constexpr, BLOCK: gl.constexpr, STAGES: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = q_desc.dtype
    # Concatenated, since Gluon's parser takes no * in a list.
    q_slots = gl.allocate_shared_memory(dtype, [2] + q_desc.block_shape, q_desc.layout)  # noqa: RUF005
    k_slots = gl.allocate_shared_memory(dtype, [STAGES] + k_desc.block_shape, k_desc.layout)  # noqa: RUF005
    v_slots = gl.allocate_shared_memory(dtype, [STAGES] + v_desc.block_shape, v_desc.layout)  # noqa: RUF005
    q = Ring(q_slots, barriers(2, 1), barriers(2, 1))
    k = Ring(k_slots, barriers(STAGES, 1), barriers(STAGES, 2))
    v = Ring(v_slots, barriers(STAGES, 1), barriers(STAGES, 2))
    rings = Rings(q, k, v)
    descs = (q_desc, k_desc, v_desc)
    outputs = Outputs(o_ptr, lse_ptr, d_ptr, o_b, o_h, o_n, d_rows, d_columns)
    scratch = Scratch(scratch_ptr, s_b, s_h, s_n)
    sizes = Sizes(n, batch_heads, heads, group, tiles, chunks, stride)
    gl.warp_specialize(
        [
            (_consume, (0, rings, outputs, scratch, sizes, scale, HEAD_DIM, BLOCK, STAGES)),
            (_consume, (1, rings, outputs, scratch, sizes, scale, HEAD_DIM, BLOCK, STAGES)),
            (_produce, (descs, rings, sizes, STAGES)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )
