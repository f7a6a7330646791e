"""Estimate the attention mass of each block along antidiagonals (XAttention): checks, choice of the kernel.

triton.py defines the estimate, reference.py computes it in plain torch.
"""

from __future__ import annotations

from torch import Tensor

from seerbench.core.problem import AttentionProblem
from seerbench.errors import KernelError
from seerbench.kernels.antidiagonal_mass import reference, triton
from seerbench.kernels.checks import check_on_gpu, check_tensors, forward_only, raise_refusal, triton_refuses


def antidiagonal_mass(q: Tensor, k: Tensor, block: int, stride: int) -> Tensor:
    """Return the mass of each block, fp32 [B, Hq, n, n] and zero above the diagonal, n = ceil(N / block).

    q [B, Hq, N, D], k [B, Hk, N, D]; block and stride in tokens. Differentiable on a CPU only.

    Raises:
        KernelError: q and k do not fit together, or the stride does not divide the block; on a GPU also if the
            kernel does not run them, or in the backward pass.
    """
    check_tensors(q, k)
    if stride < 1 or block < stride or block % stride:
        raise KernelError(f"the stride must divide the block; got a block of {block} and a stride of {stride}")
    if not q.is_cuda:
        return reference.antidiagonal_mass(q, k, block, stride)
    check_on_gpu(q)
    raise_refusal(triton_refuses(AttentionProblem.of(q, k, block, block)))
    return forward_only("antidiagonal_mass", (q, k), triton.antidiagonal_mass(q, k, block, stride))[0]
