"""XAttention's block masses: the kernel in the interpreter against the float64 oracle, tails too."""

import pytest
import torch
from gpu.kernel_cases import INTERPRETED, draw, run_in_interpreter

from seerbench.baselines import xattention
from seerbench.core.tolerance import assert_no_worse_than_rounding
from seerbench.kernels import antidiagonal_mass as kernel

if not INTERPRETED:

    def test_kernel_in_the_interpreter():
        run_in_interpreter(__file__)

else:

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    @pytest.mark.parametrize(("n", "block", "stride"), [(1, 16, 4), (64, 16, 4), (130, 16, 8), (300, 32, 4)])
    def test_mass_is_that_of_the_definition(n, block, stride, dtype, monkeypatch):
        monkeypatch.setattr(kernel, "ROWS", 32)
        monkeypatch.setattr(kernel, "KEYS", 16)
        q, k, _ = draw(n, 4, 2, 16, dtype, batch=2)
        found = kernel.antidiagonal_mass(q, k, block, stride)
        exact = xattention.antidiagonal_mass(q.double(), k.double(), block, stride)
        assert_no_worse_than_rounding(found, exact, xattention.antidiagonal_mass(q, k, block, stride))
