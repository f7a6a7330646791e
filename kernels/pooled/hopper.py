"""The pooled training kernel for Hopper (sm_90), in Gluon and in one pass: what pooled_attention.py runs there.

Same maths and same answers as the two passes of the portable form; tested against the same oracle.
The forward is like that of block_sparse_hopper.py (read it first: producer warp, two consumer warpgroups of 64
query rows, persistent programs), over every causal tile of 128 x 128, without lists and so with a fixed
schedule, since here the work of an item is known beforehand. What is added:

    in the loop      the softmax needs the largest raw score of each row of a tile anyway; it is taken a
                     block of 64 keys at a time and kept in a scratch of the consumer's own, 64 rows x fp32
                     a block, one row of the map long and used again for each item.
    after the loop   the row's log-sum-exp is final, and the maxima come back as one row of the map:
                         D[I, J] = exp2(max_r (scale * s_rJ - lse_r)).

Raw scores, not scaled by a running maximum, so that nothing stored has to be corrected later. A consumer's
64 rows are one row of the map: the two consumers never wait for each other. Blocks of 128 are the maximum of
two key blocks, taken here, and of two rows of the map, taken by torch afterwards.

The scratch costs no memory: it lies in O. At 128k it is 1 MiB a program, the size of the output of 32 items. So
each program ends with 32 short items of its own, known from the start (`schedule`), and until it writes their
output that memory is its scratch. Nobody else reads or writes these rows of O, nor does one consumer touch the
other's 64 of 128, so the only order that matters is a warpgroup's with itself. The own items come from the longest
row down; each is a piece of the scratch, given up as its output is written, and the pieces left are always enough:

    piece c lies in row of tiles  c * apart + o,  0 <= o < apart, and holds the maxima of HEAD_DIM / 4 tiles;
    that row has  c * apart + o + 1 <= (c + 1) * apart <= (c + 1) * HEAD_DIM / 4  tiles, what pieces 0 to c hold.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait
from triton.language import debug_barrier as barrier

from seerbench.core.block_mask import block_count
from seerbench.kernels.block_sparse.hopper import _descriptor, _keys, _mask, _multiprocessors, _tma_load

LOG2_E = 1.4426950408889634
LOWEST = gl.constexpr(-1.0e30)  # as in block_sparse_attention.py: far below any score, but finite
STAGES = 3  # tiles of 128 x 128 in each of the rings of K and V: 32 KiB each, and Q takes 32 of 227 KiB
CONSUMER_REGISTERS, PRODUCER_REGISTERS = 232, 40  # as in block_sparse_hopper.py


def pooled_attention(q: Tensor, k: Tensor, v: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """As pooled_attention.pooled_attention, for head_dim 64 or 128 and blocks of 64 or 128."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    batch, heads, n, _ = q.shape
    o = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], device=q.device)
    columns = block_count(n, block)
    d = torch.empty(batch, heads, columns * (block // 64), columns, dtype=q.dtype, device=q.device)
    launch(q, k, v, o, lse, d)
    return o, lse, d if block == 64 else d.unflatten(-2, (-1, 2)).amax(-2)


class Schedule(NamedTuple):
    """Who does what, and which rows of O are whose scratch; `_locate` is the other half of it."""

    programs: int
    pieces: int  # rows of tiles of O that are a program's scratch, and its last items
    apart: int  # from one of these rows to the next, of the same head; so many programs may share a head


def schedule(heads: int, n: int, head_dim: int, multiprocessors: int) -> Schedule:
    """For `heads` query heads in all, those of each batch entry counted, and n of at least 128.

    A program on each multiprocessor, or fewer where O has too few whole tiles for their scratch: at 128k that is
    128 programs for 4 heads of 128, 32 for one. With few heads most items are some program's own, and the
    shares of work are less even: the fullest has 1.45 times the mean for 4 heads at 8k, 1.02 for 32.
    """
    tiles, whole = block_count(n, 128), n // 128
    pieces = block_count(tiles, head_dim // 4)
    programs = min(multiprocessors, heads * (whole // pieces))
    return Schedule(programs, pieces, block_count(programs, heads))


def launch(q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, d: Tensor) -> None:
    """Run `_forward` into o, lse and d.

    d: contiguous, [B, Hq, r, c], rows over blocks of 64 queries, r >= ceil(N / 64), and columns over blocks of
    64 keys where c = ceil(N / 64), of 128 where c = ceil(N / 128).
    """
    batch, heads, n, head_dim = q.shape
    # An O of less than a tile has no room for it.
    scratch = o if n >= 128 else o.new_empty(batch, heads, 128, head_dim)
    programs, pieces, apart = schedule(batch * heads, max(n, 128), head_dim, _multiprocessors(q.device))
    block = 64 if d.shape[-1] == block_count(n, 64) else 128
    _forward[(programs,)](
        _descriptor(q, 64), _descriptor(k, 128), _descriptor(v, 128), o, lse, d, scratch.view(torch.float32),
        *o.stride()[:3], *(stride // 2 for stride in scratch.stride()[:3]),
        n, batch * heads, heads, heads // k.shape[1], block_count(n, 128), *d.shape[-2:], pieces, apart,
        head_dim**-0.5 * LOG2_E,
        HEAD_DIM=head_dim, BLOCK=block, STAGES=STAGES,
        CONSUMER_REGISTERS=CONSUMER_REGISTERS, PRODUCER_REGISTERS=PRODUCER_REGISTERS, num_warps=4,
    )  # fmt: skip


@gluon.jit
def _turns(program, programs, lines, tiles, pieces):
    """Turns of a program: (those in which it takes a shared item, those and its own items')."""
    shared = lines * tiles - programs * pieces
    rounds = shared // programs
    place = program if rounds % 2 == 0 else programs - 1 - program
    if rounds * programs + place < shared:
        rounds += 1
    return rounds, rounds + pieces


@gluon.jit
def _locate(turn, shared_turns, program, programs, lines, group, tiles, pieces, apart):
    """The item of a program's turn -> (line: batch * Hq + head, row of tiles).

    A round of turns goes through the programs forwards and backwards, in turn, since items come longest first
    and the first program would otherwise always get the longest of each round.

    The long items, rows of pieces * apart and up: query heads of a group side by side, then rows, then
    key/value heads. The K and V in use at one time are one head's, and stay in L2. Rows go from the longest down
    and, for every other key/value head, back up: the number of items a head has can be near a multiple of the
    number of programs, and some of these would then draw the longest of each head.

    The short ones: owner o has row c * apart + o // lines of line o % lines for each of its pieces c. Owners from
    `programs` on do not exist: their items are shared. A program's own come last, from the longest down.
    """
    item = turn * programs + (program if turn % 2 == 0 else programs - 1 - program)
    short = pieces * apart
    long = lines * (tiles - short)
    if turn < shared_turns and item < long:
        kv = item // (group * (tiles - short))
        rest = item % (group * (tiles - short))
        up = (lines // group - 1 - kv) % 2  # the last head goes down
        step = rest // group
        row = short + step if up == 1 else tiles - 1 - step
        line = kv * group + rest % group
    else:
        item -= long
        owner = programs + item // pieces
        piece = item % pieces
        if turn >= shared_turns:
            owner = program
            piece = pieces - 1 - (turn - shared_turns)
        line = owner % lines
        row = piece * apart + owner // lines
    return line, row


@gluon.jit
def _scratch_at(program, lines, heads, s_b, s_h, s_n, consumer):
    """Where a consumer's scratch begins in O seen as fp32: its half of the program's piece 0."""
    line = program % lines
    return line // heads * s_b + line % heads * s_h + (program // lines * 128 + consumer * 64) * s_n


@gluon.jit
def _of_block(block, s_n, s_piece, HEAD_DIM: gl.constexpr):
    """From there to the 64 row maxima of a block of 64 keys. A row of O holds HEAD_DIM / 2 of them, and a half
    piece, of 64 rows, those of HEAD_DIM / 2 blocks."""
    return block // (HEAD_DIM // 2) * s_piece + block % (HEAD_DIM // 2) * (128 // HEAD_DIM * s_n)


@gluon.jit
def _of_row(row, s_n, HEAD_DIM: gl.constexpr):
    """From there to the maximum of one of the 64 rows."""
    return row // (HEAD_DIM // 2) * s_n + row % (HEAD_DIM // 2)


@gluon.jit
def _produce(
    q_desc, k_desc, v_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
    lines, heads, group, tiles, pieces, apart, STAGES: gl.constexpr,
):  # fmt: skip
    program = gl.program_id(0)
    programs = gl.num_programs(0)
    shared_turns, turns = _turns(program, programs, lines, tiles, pieces)
    step = 0  # tiles put into the rings so far, over all items
    for turn in range(turns):
        line, row = _locate(turn, shared_turns, program, programs, lines, group, tiles, pieces, apart)
        batch = line // heads
        head = line % heads
        for back in range(row + 1):
            slot = step % STAGES
            phase = (step // STAGES & 1) ^ 1
            at = [batch, head // group, (row - back) * 128, 0]
            mbarrier.wait(k_empty.index(slot), phase)
            mbarrier.expect(k_full.index(slot), k_desc.block_type.nbytes)
            _tma_load(k_desc, at, k_full.index(slot), k_smem.index(slot))
            if back == 0:
                # After the first K, which is under way while the consumers still use the last item's Q.
                for half in gl.static_range(2):
                    mbarrier.wait(q_empty.index(half), (turn & 1) ^ 1)
                    mbarrier.expect(q_full.index(half), q_desc.block_type.nbytes)
                    q_at = [batch, head, row * 128 + half * 64, 0]
                    _tma_load(q_desc, q_at, q_full.index(half), q_smem.index(half))
            mbarrier.wait(v_empty.index(slot), phase)
            mbarrier.expect(v_full.index(slot), v_desc.block_type.nbytes)
            _tma_load(v_desc, at, v_full.index(slot), v_smem.index(slot))
            step += 1


@gluon.jit
def _softmax_step(s, m, l, scale, maxima, tile, s_n, s_piece, HEAD_DIM: gl.constexpr):  # noqa: E741
    """Online softmax that also keeps the row maxima of the tile's two blocks of 64 keys, at maxima [64]."""
    halves = gl.max(s.reshape([64, 2, 64]), 2)  # in registers: a thread holds columns of both halves
    left, right = gl.split(halves)
    left = gl.convert_layout(left, m.type.layout, assert_trivial=True)
    right = gl.convert_layout(right, m.type.layout, assert_trivial=True)
    maxima += _of_block(2 * tile, s_n, s_piece, HEAD_DIM)
    gl.store(maxima, left)
    gl.store(maxima + 128 // HEAD_DIM * s_n, right)  # the block after an even one is in the same piece
    m_new = gl.maximum(m, gl.maximum(left, right) * scale)
    p = gl.exp2(s * scale - gl.expand_dims(m_new, 1))
    shrink = gl.exp2(m - m_new)
    return p, m_new, l * shrink + gl.sum(p, 1), shrink


@gluon.jit
def _consume(
    consumer: gl.constexpr, q_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
    o_ptr, lse_ptr, d_ptr, scratch_ptr, o_b, o_h, o_n, s_b, s_h, s_n,
    n, lines, heads, group, tiles, d_rows, d_columns, pieces, apart, scale,
    HEAD_DIM: gl.constexpr, BLOCK: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = q_desc.dtype
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 16])
    O: gl.constexpr = gl.NVMMADistributedLayout([3, 0], warps_per_cta=[4, 1], instr_shape=[16, HEAD_DIM, 16])  # noqa: E741
    P: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=O, k_width=2)
    ROW_S: gl.constexpr = gl.SliceLayout(1, S)
    ROW_O: gl.constexpr = gl.SliceLayout(1, O)
    q = q_smem.index(consumer).reshape([64, HEAD_DIM])
    no_scores = gl.zeros([64, 128], gl.float32, S)
    own_rows = gl.arange(0, 64, ROW_S)
    program = gl.program_id(0)
    programs = gl.num_programs(0)
    shared_turns, turns = _turns(program, programs, lines, tiles, pieces)
    s_piece = apart.to(gl.int64) * 128 * s_n  # from one piece of the scratch to the next
    scratch_ptr += _scratch_at(program.to(gl.int64), lines, heads, s_b, s_h, s_n, consumer)
    maxima = scratch_ptr + _of_row(own_rows, s_n, HEAD_DIM)

    step = 0
    for turn in range(turns):
        line, row = _locate(turn, shared_turns, program, programs, lines, group, tiles, pieces, apart)
        first = row * 128 + consumer * 64
        m = gl.full([64], LOWEST, gl.float32, ROW_S)
        l = gl.zeros([64], gl.float32, ROW_S)  # noqa: E741
        acc = gl.zeros([64, HEAD_DIM], gl.float32, O)
        mbarrier.wait(q_full.index(consumer), turn & 1)
        slot = step % STAGES
        phase = step // STAGES & 1
        mbarrier.wait(k_full.index(slot), phase)
        s = warpgroup_mma(q, _keys(k_smem, slot, 128, HEAD_DIM), no_scores, use_acc=False)
        mbarrier.arrive(k_empty.index(slot), count=1)
        s = _mask(s, first, row, 128, S)  # the tile on the diagonal is the only one that needs it
        p, m, l, shrink = _softmax_step(s, m, l, scale, maxima, row, s_n, s_piece, HEAD_DIM)  # noqa: E741
        p = gl.convert_layout(p.to(dtype), P)
        for back in range(row):
            # S of this tile and P V of the last run on the tensor cores during the softmax.
            v_slot = slot
            v_phase = phase
            v = v_smem.index(v_slot).reshape([128, HEAD_DIM])
            step += 1
            slot = step % STAGES
            phase = step // STAGES & 1
            mbarrier.wait(k_full.index(slot), phase)
            k = _keys(k_smem, slot, 128, HEAD_DIM)
            s = warpgroup_mma(q, k, no_scores, use_acc=False, is_async=True)
            mbarrier.wait(v_full.index(v_slot), v_phase)
            acc = warpgroup_mma(p, v, acc, is_async=True)
            s = warpgroup_mma_wait(1, deps=[s])
            mbarrier.arrive(k_empty.index(slot), count=1)
            p_next, m, l, shrink = _softmax_step(s, m, l, scale, maxima, row - 1 - back, s_n, s_piece, HEAD_DIM)  # noqa: E741
            # Long since full: the branch in it keeps ptxas from moving the next line up, before the
            # softmax, which would undo the overlap (as in block_sparse_hopper.py).
            mbarrier.wait(v_full.index(v_slot), v_phase)
            acc = warpgroup_mma_wait(0, deps=[acc])
            mbarrier.arrive(v_empty.index(v_slot), count=1)
            acc = acc * gl.expand_dims(gl.convert_layout(shrink, ROW_O), 1)
            p = gl.convert_layout(p_next.to(dtype), P)
        mbarrier.arrive(q_empty.index(consumer), count=1)
        mbarrier.wait(v_full.index(slot), phase)
        acc = warpgroup_mma(p, v_smem.index(slot).reshape([128, HEAD_DIM]), acc)
        mbarrier.arrive(v_empty.index(slot), count=1)
        step += 1

        lse = m + gl.log2(l)
        line_64 = line.to(gl.int64)
        gl.store(lse_ptr + line_64 * n + first + own_rows, lse / 1.4426950408889634, mask=first + own_rows < n)
        # A row past the end has a probability of exp2(-inf) everywhere.
        lse = gl.where(first + own_rows < n, lse, float("inf"))
        block = row * 2 + consumer
        # Before O, whose rows may be scratch.
        barrier()  # the maxima were stored by other threads of this warpgroup
        if block < d_rows:
            d_row = d_ptr + (line_64 * d_rows + block) * d_columns
            _write_map(d_row, block, d_columns, scratch_ptr, lse, scale, s_n, s_piece, HEAD_DIM, BLOCK)
        barrier()  # all is read: O may go there, and the next item's maxima

        acc = acc * gl.expand_dims(gl.convert_layout(1.0 / l, ROW_O), 1)
        rows = gl.arange(0, 64, ROW_O)
        columns = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, O))
        o_base = o_ptr + (line // heads).to(gl.int64) * o_b + (line % heads).to(gl.int64) * o_h
        o_base += first.to(gl.int64) * o_n
        where = gl.expand_dims(rows * o_n, 1) + gl.expand_dims(columns, 0)
        gl.store(o_base + where, acc.to(dtype), mask=gl.expand_dims(first + rows < n, 1))


@gluon.jit
def _write_map(
    d_ptr, block, d_columns, scratch_ptr, lse, scale, s_n, s_piece, HEAD_DIM: gl.constexpr, BLOCK: gl.constexpr
):
    """One row of the map at d_ptr, from the row maxima in the scratch and lse [64] in base 2."""
    # A quad of threads takes one column, 64 values; a load is 16 bytes.
    L: gl.constexpr = gl.BlockedLayout([4, 1], [4, 8], [1, 4], [0, 1])
    rows = gl.expand_dims(gl.arange(0, 64, gl.SliceLayout(1, L)), 1)
    scratch = scratch_ptr + _of_row(rows, s_n, HEAD_DIM)
    lse = gl.expand_dims(gl.convert_layout(lse, gl.SliceLayout(1, L)), 1)
    for start in range(0, d_columns, 128):
        columns = start + gl.arange(0, 128, gl.SliceLayout(0, L))
        maxima = gl.full([64, 128], float("-inf"), gl.float32, L)
        for part in gl.static_range(BLOCK // 64):
            keys = gl.expand_dims(columns * (BLOCK // 64) + part, 0)
            # Above the diagonal nothing was stored, and the map is exp2(-inf) = 0.
            at = scratch + _of_block(keys, s_n, s_piece, HEAD_DIM)
            maxima = gl.maximum(maxima, gl.load(at, mask=keys <= block, other=float("-inf")))
        d = gl.exp2(gl.max(maxima * scale - lse, 0))
        gl.store(d_ptr + columns, d.to(d_ptr.dtype.element_ty), mask=columns < d_columns)


@gluon.jit(do_not_specialize=["n", "lines", "heads", "group", "tiles", "d_rows", "d_columns", "pieces", "apart"])
def _forward(
    q_desc, k_desc, v_desc, o_ptr, lse_ptr, d_ptr, scratch_ptr, o_b, o_h, o_n, s_b, s_h, s_n,
    n, lines, heads, group, tiles, d_rows, d_columns, pieces, apart, scale,
    HEAD_DIM: gl.constexpr, BLOCK: gl.constexpr, STAGES: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = q_desc.dtype
    # Concatenated, since Gluon's parser takes no * in a list.
    q_smem = gl.allocate_shared_memory(dtype, [2] + q_desc.block_shape, q_desc.layout)  # noqa: RUF005
    k_smem = gl.allocate_shared_memory(dtype, [STAGES] + k_desc.block_shape, k_desc.layout)  # noqa: RUF005
    v_smem = gl.allocate_shared_memory(dtype, [STAGES] + v_desc.block_shape, v_desc.layout)  # noqa: RUF005
    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=2)
    gl.warp_specialize(
        [
            (_consume, (
                0, q_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
                o_ptr, lse_ptr, d_ptr, scratch_ptr, o_b, o_h, o_n, s_b, s_h, s_n,
                n, lines, heads, group, tiles, d_rows, d_columns, pieces, apart, scale, HEAD_DIM, BLOCK, STAGES,
            )),
            (_consume, (
                1, q_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
                o_ptr, lse_ptr, d_ptr, scratch_ptr, o_b, o_h, o_n, s_b, s_h, s_n,
                n, lines, heads, group, tiles, d_rows, d_columns, pieces, apart, scale, HEAD_DIM, BLOCK, STAGES,
            )),
            (_produce, (
                q_desc, k_desc, v_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
                lines, heads, group, tiles, pieces, apart, STAGES,
            )),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
