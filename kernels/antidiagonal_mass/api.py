"""Estimate the attention mass of each block along antidiagonals (XAttention): choice of the kernel.

triton.py defines the estimate, reference.py computes it in plain torch.
"""

from __future__ import annotations

from torch import Tensor

from seerbench.kernels.antidiagonal_mass import reference, triton


def antidiagonal_mass(q: Tensor, k: Tensor, block: int, stride: int) -> Tensor:
    """Return the mass of each block, fp32 [B, Hq, n, n] and zero above the diagonal, n = ceil(N / block).

    q [B, Hq, N, D], k [B, Hk, N, D]; stride must divide block. Raises ValueError on a GPU if a block has more
    strides than the kernel's tile of keys holds.
    """
    implementation = triton if q.is_cuda else reference
    return implementation.antidiagonal_mass(q, k, block, stride)
