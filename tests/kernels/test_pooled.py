"""Pooled attention: the streamed CPU form, and the pooling kernel in Triton's interpreter, against float64; where
the Hopper kernel, which no interpreter runs, keeps its scratch."""

import numpy as np
import pytest
import torch
from gpu.kernel_cases import INTERPRETED, LENGTHS, draw, far_apart, run_in_interpreter

from seerbench.core.block_mask import block_count
from seerbench.core.reference import reference_attention
from seerbench.core.tolerance import assert_no_worse_than_rounding
from seerbench.kernels.pooled import api as pooled_api
from seerbench.kernels.pooled import reference as kernel
from seerbench.kernels.pooled import triton as pooled_triton

if not INTERPRETED:

    def test_kernel_in_the_interpreter():
        run_in_interpreter(__file__)

    @pytest.mark.parametrize("n", LENGTHS)
    @pytest.mark.parametrize("group", [1, 4, 8])
    def test_streamed_against_the_definition(n, group):
        q, k, v = draw(n, group * 2, 2, 32, torch.float32)
        exact = kernel.naive_pooled_attention(q, k, v, dtype=torch.float64)
        rounded = kernel.naive_pooled_attention(q, k, v)
        for actual, right, other in zip(pooled_api.pooled_attention(q, k, v), exact, rounded, strict=True):
            assert actual.dtype == torch.float32
            assert_no_worse_than_rounding(actual, right, other)

    def test_the_definition_agrees_with_the_oracle():
        q, k, v = draw(130, 4, 2, 16, torch.float32)
        o, lse, d = kernel.naive_pooled_attention(q, k, v, dtype=torch.float64)
        exact_o, exact_lse = reference_attention(q, k, v)
        torch.testing.assert_close(o, exact_o)
        torch.testing.assert_close(lse, exact_lse)
        weights = (q.double() @ k.double().repeat_interleave(2, 1).mT * 16**-0.5).tril()
        weights = weights.masked_fill(torch.ones(130, 130).triu(1).bool(), -torch.inf).softmax(-1)
        torch.testing.assert_close(d[..., 1, 0], weights[..., 64:128, :64].amax((-1, -2)))
        assert (d[..., 0, 1:] == 0).all()

    # batch * Hq, Hq / Hk, N, head_dim, multiprocessors: the paper's shape, other GPUs, few heads and many, lengths
    # around whole tiles and chunks, the shortest.
    SCHEDULES = [
        (32, 4, 131072, 128, 132), (32, 4, 32768, 128, 132), (32, 4, 8192, 128, 114), (4, 4, 131072, 128, 132),
        (1, 1, 131072, 128, 132), (8, 8, 65535, 64, 132), (28, 7, 20000, 64, 78), (400, 2, 5000, 64, 132),
        (3, 1, 4097, 128, 132), (6, 2, 4224, 128, 132), (1, 1, 128, 64, 132), (5, 5, 255, 128, 132),
        (2, 1, 2049, 64, 1),
    ]  # fmt: skip

    @pytest.mark.parametrize(("batch_heads", "group", "n", "head_dim", "multiprocessors"), SCHEDULES)
    def test_hopper_does_each_work_tile_once_and_lends_only_memory_it_has_yet_to_write(
        batch_heads, group, n, head_dim, multiprocessors
    ):
        from seerbench.kernels.pooled import hopper

        tiles = block_count(n, 128)
        programs, chunks, stride = hopper.schedule(batch_heads, n, head_dim, multiprocessors)
        assert 1 <= programs <= multiprocessors
        done_by, done_at = np.full((2, batch_heads, tiles), -1)
        for program in range(programs):
            shared, iterations = hopper.iterations_of.fn(program, programs, batch_heads, tiles, chunks)
            for iteration in range(iterations):
                work_tile = hopper.locate.fn(
                    iteration, shared, program, programs, batch_heads, group, tiles, chunks, stride
                )
                assert done_by[work_tile] == -1, "done twice"
                done_by[work_tile], done_at[work_tile] = program, iteration
        assert (done_by >= 0).all()
        for program in range(programs):
            rows = program // batch_heads + np.arange(chunks) * stride
            assert (rows + 1).max() * 128 <= n, "a chunk must be a whole tile of O"
            given_up = done_at[program % batch_heads, rows]
            assert (done_by[program % batch_heads, rows] == program).all()
            _, row = np.nonzero(done_by == program)
            iteration = done_at[done_by == program]
            # A work tile needs all chunks up to that of its last tile. Its own output may be one of
            # them, since it reads the maxima before it writes.
            needed = row // (head_dim // 4)
            assert (np.minimum.accumulate(given_up)[needed] >= iteration).all()

    @pytest.mark.parametrize("heads_inside", [False, True], ids=["[B, H, N, D]", "[B, N, H, D]"])
    @pytest.mark.parametrize(("n", "head_dim"), [(128, 64), (128, 128), (5000, 64), (9000, 128)])
    def test_hopper_keeps_its_row_maxima_in_the_rows_that_are_lent(n, head_dim, heads_inside):
        from seerbench.kernels.pooled import hopper

        batch, heads, tiles = 2, 3, block_count(n, 128)
        programs, _, stride = hopper.schedule(batch * heads, n, head_dim, 50)
        o = torch.empty(batch, heads, n, head_dim)
        o = torch.empty(batch, n, heads, head_dim).transpose(1, 2) if heads_inside else o
        strides = [step // 2 for step in o.stride()[:3]]
        # The owner of each fp32 of O's memory: its batch_head, and its half tile (64 rows).
        belongs = np.full((o.numel() // 2, 2), -1)
        batch_head, token, x = np.ogrid[: batch * heads, :n, : head_dim // 2]
        flat = batch_head // heads * strides[0] + batch_head % heads * strides[1] + token * strides[2] + x
        belongs[flat] = np.stack(
            np.broadcast_arrays(batch_head + 0 * x * token, token // 64 + 0 * batch_head * x), -1
        )
        block, row = np.ogrid[: 2 * tiles, :64]
        for program in range(programs):
            for consumer in range(2):
                start = hopper.scratch_start.fn(program, batch * heads, heads, *strides, consumer)
                to_block = hopper.block_offset.fn(block, strides[2], stride * 128 * strides[2], head_dim)
                assert (to_block[1::2] == to_block[::2] + 128 // head_dim * strides[2]).all()
                at = start + to_block + hopper.row_offset.fn(row, strides[2], head_dim)
                assert len(np.unique(at)) == at.size
                chunk = block // 2 // (head_dim // 4)
                half_tile = (chunk * stride + program // (batch * heads)) * 2 + consumer
                assert (belongs[at, 0] == program % (batch * heads)).all()
                assert (belongs[at, 1] == half_tile).all()

else:

    @pytest.mark.parametrize(
        ("n", "block"), [(1, 64), (63, 64), (65, 64), (300, 64), (130, 32), (130, 128), (300, 128)]
    )
    def test_pooled_map(n, block):
        q, k, v = draw(n, 4, 2, 16, torch.float16, batch=1)
        _, lse, exact = kernel.naive_pooled_attention(q, k, v, block, torch.float64)
        _, _, rounded = kernel.naive_pooled_attention(q, k, v, block)
        d = torch.zeros(1, 4, block_count(n, block), block_count(n, block), dtype=q.dtype)
        d.masked_fill_(torch.ones_like(d).tril().bool(), torch.nan)  # poison what the kernel must write
        pooled_triton.launch_pool(q, k, lse.float(), d, block)
        assert_no_worse_than_rounding(d, exact, rounded)

    def test_forward_over_a_list_that_all_rows_share():
        from seerbench.kernels.block_sparse import triton as block_sparse_triton

        q, k, v = draw(300, 2, 1, 16, torch.float32)
        o, lse = torch.full_like(q, torch.nan), torch.full(q.shape[:3], torch.nan)
        block_sparse_triton.launch(q, k, v, pooled_triton.full_mask(2, 2, 300, 64, q.device), o, lse)
        exact_o, exact_lse = reference_attention(q, k, v)
        rounded_o, rounded_lse = reference_attention(q, k, v, dtype=torch.float32)
        assert_no_worse_than_rounding(o, exact_o, rounded_o)
        assert_no_worse_than_rounding(lse, exact_lse, rounded_lse)

    @pytest.mark.parametrize(("dimension", "step"), [(0, 2**31 + 64), (1, 2**31 + 64), (2, 2**24)])
    def test_offsets_beyond_32_bits(dimension, step):
        q, k, v = draw(130, 2, 2, 16, torch.float16, batch=2 if dimension == 0 else 1)
        lse = kernel.naive_pooled_attention(q, k, v)[1].float()
        maps = [torch.zeros(*q.shape[:2], 3, 3, dtype=q.dtype) for _ in range(2)]
        pooled_triton.launch_pool(*far_apart([q, k], dimension, step), lse, maps[0], 64)
        pooled_triton.launch_pool(q, k, lse, maps[1], 64)
        assert torch.equal(*maps)
