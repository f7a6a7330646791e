"""api."""

from __future__ import annotations

import torch
from torch import Tensor

from seerbench.core.problem import AttentionProblem
from seerbench.kernels.block_sparse import api as block_sparse_api
from seerbench.kernels.pooled.reference import streamed
from seerbench.kernels.pooled.triton import two_passes


def implementation(case: AttentionProblem) -> str:
    """The name of the kernel that runs `case`; it goes into the rows."""
    if case.device == "cpu":
        return "torch-streamed"
    return "gluon-one-pass" if _hopper(case.head_dim, case.block_q) else "triton-two-pass"


def _hopper(head_dim: int, block: int) -> bool:
    """Whether pooled_hopper.py takes it."""
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
    return hopper and head_dim in (64, 128) and block in (64, 128)


def refuses(case: AttentionProblem) -> str | None:
    """Why the kernel cannot run `case`, or None."""
    if case.q_heads % case.kv_heads:
        return f"{case.q_heads} query heads do not split over {case.kv_heads} key/value heads"
    if case.block_q != case.block_k:
        return f"the pooled map has square blocks, not {case.block_q} x {case.block_k}"
    if case.device == "cpu":
        return None
    if case.block_q not in (32, 64, 128):
        return f"the pooled kernel takes blocks of 32, 64 or 128, not {case.block_q}"
    return block_sparse_api.refuses(case)


def pooled_attention(q: Tensor, k: Tensor, v: Tensor, block: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, Hq, N, D], k and v [B, Hk, N, D] -> (o, lse, d), causal and dense. Forward only.

    o [B, Hq, N, D] and d [B, Hq, n, n] in q's dtype, lse [B, Hq, N] in fp32; n = ceil(N / block).
    """
    if not q.is_cuda:
        return streamed(q, k, v, block)
    if _hopper(q.shape[-1], block):
        from seerbench.kernels.pooled import hopper as pooled_hopper

        return pooled_hopper.pooled_attention(q, k, v, block)
    return two_passes(q, k, v, block)
