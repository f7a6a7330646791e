"""Attention that also returns its block-max-pooled map (AttnGate's training target): checks, choice of the kernel.

The map is defined in triton.py; reference.py has it in plain torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seerbench.core.problem import AttentionProblem
from seerbench.errors import KernelError
from seerbench.kernels.block_sparse import api as block_sparse
from seerbench.kernels.checks import check_on_gpu, check_tensors, forward_only, raise_refusal
from seerbench.kernels.pooled.reference import streamed
from seerbench.kernels.pooled.triton import two_passes
from seerbench.kernels.primitives import INTERPRETED


def implementation(problem: AttentionProblem) -> str:
    """Return the name of the kernel that runs `problem`, as it goes into the rows."""
    if problem.device == "cpu":
        return "torch-streamed"
    return "gluon-one-pass" if on_hopper(problem.head_dim, problem.block_q) else "triton-two-pass"


def on_hopper(head_dim: int, block: int) -> bool:
    """Return whether hopper.py takes these sizes on this machine."""
    hopper = not INTERPRETED and torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
    return hopper and head_dim in (64, 128) and block in (64, 128)


def refuses(problem: AttentionProblem) -> str | None:
    """Return why the kernel cannot run `problem`, or None."""
    if problem.q_heads % problem.kv_heads:
        return f"{problem.q_heads} query heads do not split over {problem.kv_heads} key/value heads"
    if problem.block_q != problem.block_k:
        return f"the pooled map has square blocks, not {problem.block_q} x {problem.block_k}"
    if problem.device == "cpu":
        return None
    if problem.block_q not in (32, 64, 128):
        return f"the pooled kernel takes blocks of 32, 64 or 128, not {problem.block_q}"
    return block_sparse.refuses(problem)


def pooled_attention(q: Tensor, k: Tensor, v: Tensor, block: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Return (o, lse, d) of dense causal attention for q [B, Hq, N, D], k and v [B, Hk, N, D]. Forward only.

    o [B, Hq, N, D] and the map d [B, Hq, n, n] are in q's dtype, lse [B, Hq, N] in fp32; n = ceil(N / block).

    Raises:
        KernelError: the tensors do not fit together, or no kernel runs them; or in the backward pass.
    """
    check_tensors(q, k, v)
    if block < 1:
        raise KernelError(f"a block has at least one token, not {block}")
    raise_refusal(refuses(AttentionProblem.of(q, k, block, block)))
    with torch.no_grad():
        outputs = _run(q, k, v, block)
    return forward_only("pooled_attention", (q, k, v), *outputs)


def _run(q: Tensor, k: Tensor, v: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
    if not q.is_cuda:
        return streamed(q, k, v, block)
    check_on_gpu(q)
    if on_hopper(q.shape[-1], block):
        from seerbench.kernels.pooled import hopper  # Gluon, which only Hopper needs, is not in every Triton

        return hopper.pooled_attention(q, k, v, block)
    return two_passes(q, k, v, block)
