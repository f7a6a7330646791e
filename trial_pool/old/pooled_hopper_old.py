"""The pooled training kernel for Hopper (sm_90), in Gluon and in one pass: what pooled_attention.py runs there.

Same maths and same answers as the two passes of the portable form; tested against the same oracle.
The forward is like that of block_sparse_hopper.py (read it first: producer warp, two consumer warpgroups of 64
query rows, persistent programs), over every causal tile of 128 x 128, without lists and so with a fixed
schedule, since here the work of an item is known beforehand. What is added:

    in the loop      the softmax needs the largest raw score of each row of a tile anyway; it is taken a
                     block of 64 keys at a time and stored, 64 rows x fp32, in a scratch that belongs to the
                     program: one row of tiles long, used again for each item, so memory stays O(N).
    after the loop   the row's log-sum-exp is final, and the maxima come back as one row of the map:
                         D[I, J] = exp2(max_r (scale * s_rJ - lse_r)).

Raw scores, not scaled by a running maximum, so that nothing stored has to be corrected later. A consumer's
64 rows are one row of the map: the two consumers never wait for each other. A block of 128 is the maximum
of four of these, which torch takes afterwards (the map has N^2 / 4096 entries a head).
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language import debug_barrier as barrier  # Gluon's own name for it differs between versions

from seerbench.attention import block_count
from seerbench.kernels.block_sparse_hopper import (
    _descriptor,
    _keys,
    _mask,
    _multiprocessors,
    _tma_load,
)

LOG2_E = 1.4426950408889634
LOWEST = gl.constexpr(-1.0e30)  # as in block_sparse_attention.py: far below any score, but finite

STAGES = 3  # tiles of 128 x 128 in each of the rings of K and V: 32 KiB each, and Q takes 32 of 227 KiB
CONSUMER_REGISTERS, PRODUCER_REGISTERS = 232, 40  # as in block_sparse_hopper.py


def pooled_attention(q: Tensor, k: Tensor, v: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """As pooled_attention.pooled_attention, for head_dim 64 or 128 and blocks of 64 or 128."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    batch, heads, n, _ = q.shape
    blocks = block_count(n, block) * (block // 64)
    o = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], device=q.device)
    d = torch.empty(batch, heads, blocks, blocks, dtype=q.dtype, device=q.device)
    launch(q, k, v, o, lse, d, new_scratch(q))
    if block == 128:
        d = d.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).amax((-3, -1))
    return o, lse, d


def new_scratch(q: Tensor) -> Tensor:
    """Row maxima of one row of tiles for each program: fp32 [programs, 2 consumers, blocks, 64 rows]."""
    batch, heads, n, _ = q.shape
    tiles = block_count(n, 128)
    programs = min(batch * heads * tiles, _multiprocessors(q.device))
    return torch.empty(programs, 2, 2 * tiles, 64, device=q.device)


def launch(q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, d: Tensor, scratch: Tensor) -> None:
    """Run `_forward` into o, lse and d, a contiguous [B, Hq, m, m] over blocks of 64, m >= ceil(N / 64)."""
    batch, heads, n, head_dim = q.shape
    tiles = block_count(n, 128)
    _forward[(len(scratch),)](
        _descriptor(q, 64), _descriptor(k, 128), _descriptor(v, 128), o, lse, d, scratch, *o.stride()[:3],
        n, heads, heads // k.shape[1], tiles, d.shape[-1], batch * heads * tiles, head_dim**-0.5 * LOG2_E,
        HEAD_DIM=head_dim, STAGES=STAGES,
        CONSUMER_REGISTERS=CONSUMER_REGISTERS, PRODUCER_REGISTERS=PRODUCER_REGISTERS, num_warps=4,
    )  # fmt: skip


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
def _produce(
    q_desc, k_desc, v_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
    heads, group, tiles, items, STAGES: gl.constexpr,
):  # fmt: skip
    step = 0  # tiles put into the rings so far, over all items
    turn = 0
    item = _item_of(turn)
    while item < items:
        batch, head, row = _locate(item, items, heads, group, tiles)
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
        turn += 1
        item = _item_of(turn)


@gluon.jit
def _softmax_step(s, m, l, scale, maxima, tile):  # noqa: E741
    """Online softmax that also keeps the row maxima of the tile's two blocks of 64 keys, at maxima [64]."""
    halves = gl.max(s.reshape([64, 2, 64]), 2)  # in registers: a thread holds columns of both halves
    left, right = gl.split(halves)
    left = gl.convert_layout(left, m.type.layout, assert_trivial=True)
    right = gl.convert_layout(right, m.type.layout, assert_trivial=True)
    gl.store(maxima + tile * 128, left)
    gl.store(maxima + tile * 128 + 64, right)
    m_new = gl.maximum(m, gl.maximum(left, right) * scale)
    p = gl.exp2(s * scale - gl.expand_dims(m_new, 1))
    shrink = gl.exp2(m - m_new)
    return p, m_new, l * shrink + gl.sum(p, 1), shrink


@gluon.jit
def _consume(
    consumer: gl.constexpr, q_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
    o_ptr, lse_ptr, d_ptr, scratch_ptr, o_b, o_h, o_n, n, heads, group, tiles, blocks, items, scale,
    HEAD_DIM: gl.constexpr, STAGES: gl.constexpr,
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
    scratch_ptr += (gl.program_id(0) * 2 + consumer).to(gl.int64) * tiles * 128
    maxima = scratch_ptr + own_rows

    step = 0
    turn = 0
    item = _item_of(turn)
    while item < items:
        batch, head, row = _locate(item, items, heads, group, tiles)
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
        p, m, l, shrink = _softmax_step(s, m, l, scale, maxima, row)  # noqa: E741
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
            p_next, m, l, shrink = _softmax_step(s, m, l, scale, maxima, row - 1 - back)  # noqa: E741
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

        line = (batch * heads + head).to(gl.int64)
        lse = m + gl.log2(l)
        gl.store(lse_ptr + line * n + first + own_rows, lse / 1.4426950408889634, mask=first + own_rows < n)
        acc = acc * gl.expand_dims(gl.convert_layout(1.0 / l, ROW_O), 1)
        rows = gl.arange(0, 64, ROW_O)
        columns = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, O))
        o_base = o_ptr + batch.to(gl.int64) * o_b + head.to(gl.int64) * o_h + first.to(gl.int64) * o_n
        where = gl.expand_dims(rows * o_n, 1) + gl.expand_dims(columns, 0)
        gl.store(o_base + where, acc.to(dtype), mask=gl.expand_dims(first + rows < n, 1))

        # A row past the end has a probability of exp2(-inf) everywhere.
        lse = gl.where(first + own_rows < n, lse, float("inf"))
        block = row * 2 + consumer
        if block < blocks:
            _write_map(d_ptr + (line * blocks + block) * blocks, block, blocks, scratch_ptr, lse, scale)
        turn += 1
        item = _item_of(turn)


@gluon.jit
def _write_map(d_ptr, block, blocks, scratch_ptr, lse, scale):
    """One row of the map at d_ptr, from the row maxima in the scratch and lse [64] in base 2."""
    # A quad of threads takes one column, 64 contiguous values; a load is 16 bytes.
    L: gl.constexpr = gl.BlockedLayout([4, 1], [4, 8], [1, 4], [0, 1])
    rows = gl.expand_dims(gl.arange(0, 64, gl.SliceLayout(1, L)), 1)
    lse = gl.expand_dims(gl.convert_layout(lse, gl.SliceLayout(1, L)), 1)
    barrier()  # the maxima were stored by other threads of this warpgroup
    for start in range(0, blocks, 128):
        columns = start + gl.arange(0, 128, gl.SliceLayout(0, L))
        # Above the diagonal nothing was stored, and the map is exp2(-inf) = 0.
        seen = gl.expand_dims(columns <= block, 0)
        maxima = gl.load(scratch_ptr + gl.expand_dims(columns * 64, 0) + rows, mask=seen, other=float("-inf"))
        d = gl.exp2(gl.max(maxima * scale - lse, 0))
        gl.store(d_ptr + columns, d.to(d_ptr.dtype.element_ty), mask=columns < blocks)
    barrier()  # all is read: the next item may store its own


@gluon.jit(do_not_specialize=["n", "heads", "group", "tiles", "blocks", "items"])
def _forward(
    q_desc, k_desc, v_desc, o_ptr, lse_ptr, d_ptr, scratch_ptr, o_b, o_h, o_n,
    n, heads, group, tiles, blocks, items, scale,
    HEAD_DIM: gl.constexpr, STAGES: gl.constexpr,
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
                o_ptr, lse_ptr, d_ptr, scratch_ptr, o_b, o_h, o_n, n, heads, group, tiles, blocks, items,
                scale, HEAD_DIM, STAGES,
            )),
            (_consume, (
                1, q_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
                o_ptr, lse_ptr, d_ptr, scratch_ptr, o_b, o_h, o_n, n, heads, group, tiles, blocks, items,
                scale, HEAD_DIM, STAGES,
            )),
            (_produce, (
                q_desc, k_desc, v_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
                heads, group, tiles, items, STAGES,
            )),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
