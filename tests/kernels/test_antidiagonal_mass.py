"""XAttention's block masses: the kernel in the interpreter against the float64 reference, tails too."""

import pytest
import torch
from gpu.kernel_cases import INTERPRETED, draw, far_apart, run_in_interpreter

from seerbench.core.tolerance import assert_no_worse_than_rounding
from seerbench.kernels.antidiagonal_mass import reference, triton

if not INTERPRETED:

    def test_kernel_in_the_interpreter():
        run_in_interpreter(__file__)

    def test_a_block_of_more_strides_than_a_tile_holds_is_refused():
        q, k, _ = draw(256, 2, 1, 16, torch.float32, batch=1)
        with pytest.raises(ValueError, match="256"):
            triton.antidiagonal_mass(q, k, block=256, stride=2)

else:

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    @pytest.mark.parametrize(("n", "block", "stride"), [(1, 16, 4), (64, 16, 4), (130, 16, 8), (170, 32, 4)])
    def test_mass_is_that_of_the_definition(n, block, stride, dtype, monkeypatch):
        monkeypatch.setattr(triton, "ROWS", 32)
        monkeypatch.setattr(triton, "KEYS", 16)
        q, k, _ = draw(n, 4, 2, 16, dtype, batch=2 if n < 100 else 1)
        found = triton.antidiagonal_mass(q, k, block, stride)
        exact = reference.antidiagonal_mass(q.double(), k.double(), block, stride)
        assert_no_worse_than_rounding(found, exact, reference.antidiagonal_mass(q, k, block, stride))

    @pytest.mark.parametrize(("dimension", "step"), [(0, 2**31 + 64), (1, 2**31 + 64), (2, 2**24)])
    def test_offsets_beyond_32_bits(dimension, step):
        near = draw(130, 2, 2, 16, torch.float16, batch=2 if dimension == 0 else 1)[:2]
        far = far_apart(near, dimension, step)
        assert torch.equal(triton.antidiagonal_mass(*far, 64, 8), triton.antidiagonal_mass(*near, 64, 8))
