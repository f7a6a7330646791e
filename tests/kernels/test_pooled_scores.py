"""FlashPrefill's scores: the kernel in the interpreter against the float64 reference."""

import pytest
import torch
from gpu.kernel_cases import INTERPRETED, draw, far_apart, run_in_interpreter

from seerbench.core.tolerance import assert_no_worse_than_rounding
from seerbench.kernels.attn_gate.reference import pool_blocks
from seerbench.kernels.pooled_scores import reference, triton

if not INTERPRETED:

    def test_kernel_in_the_interpreter():
        run_in_interpreter(__file__)

else:

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    @pytest.mark.parametrize("n", [1, 16, 17, 130])
    @pytest.mark.parametrize("from_first", [False, True])
    def test_scores_are_those_of_the_definition(n, dtype, from_first):
        q, k, _ = draw(n, 4, 2, 16, dtype, batch=2)
        found = triton.pooled_scores(q, pool_blocks(k, 16)["avg"], 16, from_first)
        exact = reference.pooled_scores(q.double(), k.double(), 16, from_first)
        # The method pools in q's dtype, so the kernel may make the rounding errors that plain torch makes there.
        assert_no_worse_than_rounding(found, exact, reference.pooled_scores(q, k, 16, from_first))
        assert (found == -torch.inf).equal(exact == -torch.inf)

    @pytest.mark.parametrize(("dimension", "step"), [(0, 2**31 + 64), (1, 2**31 + 64), (2, 2**24)])
    def test_offsets_beyond_32_bits(dimension, step):
        q, k, _ = draw(130, 2, 2, 16, torch.float16, batch=2 if dimension == 0 else 1)
        pooled = pool_blocks(k, 64)["avg"]
        (far_q,), (far_pooled,) = far_apart([q], dimension, step), far_apart([pooled], dimension, step)
        assert torch.equal(triton.pooled_scores(far_q, far_pooled, 64), triton.pooled_scores(q, pooled, 64))
