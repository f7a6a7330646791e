"""Pooled attention: the streamed CPU form, and the pooling kernel in Triton's interpreter, against float64."""

import pytest
import torch
from gpu.kernel_cases import INTERPRETED, LENGTHS, draw, run_in_interpreter

from seerbench.attention import assert_no_worse_than_rounding, block_count, oracle
from seerbench.kernels import pooled_attention as kernel

if not INTERPRETED:

    def test_kernel_in_the_interpreter():
        run_in_interpreter(__file__)

    @pytest.mark.parametrize("n", LENGTHS)
    @pytest.mark.parametrize("group", [1, 4, 8])
    def test_streamed_against_the_definition(n, group):
        q, k, v = draw(n, group * 2, 2, 32, torch.float32)
        exact = kernel.naive_pooled_attention(q, k, v, dtype=torch.float64)
        rounded = kernel.naive_pooled_attention(q, k, v)
        for actual, right, other in zip(kernel.pooled_attention(q, k, v), exact, rounded, strict=True):
            assert actual.dtype == torch.float32
            assert_no_worse_than_rounding(actual, right, other)

    def test_the_definition_agrees_with_the_oracle():
        q, k, v = draw(130, 4, 2, 16, torch.float32)
        o, lse, d = kernel.naive_pooled_attention(q, k, v, dtype=torch.float64)
        exact_o, exact_lse = oracle(q, k, v)
        torch.testing.assert_close(o, exact_o)
        torch.testing.assert_close(lse, exact_lse)
        weights = (q.double() @ k.double().repeat_interleave(2, 1).mT * 16**-0.5).tril()
        weights = weights.masked_fill(torch.ones(130, 130).triu(1).bool(), -torch.inf).softmax(-1)
        torch.testing.assert_close(d[..., 1, 0], weights[..., 64:128, :64].amax((-1, -2)))
        assert (d[..., 0, 1:] == 0).all()

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
        kernel.launch_pool(q, k, lse.float(), d, block)
        assert_no_worse_than_rounding(d, exact, rounded)

    def test_forward_over_a_list_that_all_rows_share():
        from seerbench.kernels import block_sparse_attention

        q, k, v = draw(300, 2, 1, 16, torch.float32)
        o, lse = torch.full_like(q, torch.nan), torch.full(q.shape[:3], torch.nan)
        block_sparse_attention.launch(q, k, v, kernel.full_mask(2, 2, 300, 64, q.device), o, lse)
        exact_o, exact_lse = oracle(q, k, v)
        rounded_o, rounded_lse = oracle(q, k, v, dtype=torch.float32)
        assert_no_worse_than_rounding(o, exact_o, rounded_o)
        assert_no_worse_than_rounding(lse, exact_lse, rounded_lse)
