"""Block-sparse attention: checks, choice of the kernel, gradients.

`block_sparse_attention` is what methods call. On a GPU it runs hopper.py or triton.py and, for gradients,
triton_backward.py; on a CPU FlexAttention. The reference is seerbench.core.reference.reference_attention, which
runs on any device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem
from seerbench.kernels import flex_attention
from seerbench.kernels.block_sparse import triton
from seerbench.kernels.block_sparse.triton_backward import gradients
from seerbench.kernels.checks import (
    check_mask,
    check_on_gpu,
    check_tensors,
    forward_only,
    raise_refusal,
    triton_refuses,
)
from seerbench.kernels.primitives import INTERPRETED, addressable, tma_readable

HOPPER_BLOCKS = ((64, 64), (128, 64), (128, 128))  # (block_q, block_k) that hopper.py takes


def implementation(problem: AttentionProblem) -> str:
    """Return the name of the kernel that runs `problem`, as it goes into the rows."""
    if problem.device == "cpu":
        return "flex-cpu"
    return "gluon-hopper" if on_hopper(problem.block_q, problem.block_k, problem.head_dim) else "triton"


def refuses(problem: AttentionProblem) -> str | None:
    """Return why the kernel cannot run `problem`, or None."""
    return flex_attention.refuses(problem) if problem.device == "cpu" else _kernels_refuse(problem)


def _kernels_refuse(problem: AttentionProblem) -> str | None:
    """Return why hopper.py and triton.py cannot run `problem`, or None."""
    if reason := triton_refuses(problem):
        return reason
    if (problem.block_q, problem.block_k) not in triton.TILES:
        return f"the Triton kernel takes blocks {sorted(triton.TILES)}, not {problem.block_q} x {problem.block_k}"
    return None


def block_sparse_attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """Return attention over the listed blocks, [B, Hq, N, D] in q's dtype, for q [B, Hq, N, D], k, v [B, Hk, N, D].

    The cost is proportional to the number of blocks kept. Rows without a block give zeros. Differentiable on a GPU;
    on a CPU use `flex_attention.masked_attention` for gradients.

    Raises:
        KernelError: the tensors and the mask do not fit together, or no kernel runs them; on a CPU, in the backward
            pass.
    """
    if not q.is_cuda:
        return flex_attention.flex_block_sparse(q, k, v, mask)
    return BlockSparseAttention.apply(q, k, v, mask)


class BlockSparseAttention(torch.autograd.Function):
    """`block_sparse_attention` on a GPU, with gradients for q, k and v."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
        """Return attention [B, Hq, N, D] for q [B, Hq, N, D], k and v [B, Hk, N, D]."""
        o, lse = block_sparse_attention_with_lse(q, k, v, mask)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.mask = mask
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of q, k and v from `do`, that of the output [B, Hq, N, D]; None for the mask."""
        q, k, v, o, lse = ctx.saved_tensors
        return *gradients(q, k, v, o, lse, do, ctx.mask), None


def block_sparse_attention_with_lse(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> tuple[Tensor, Tensor]:
    """Return attention [B, Hq, N, D] and its log-sum-exp [B, Hq, N] on a GPU, without gradients.

    The log-sum-exp is fp32 and natural; it is -inf in a row that sees no key.

    Raises:
        KernelError: the tensors and the mask do not fit together, no kernel runs them, or a gradient is asked for.
    """
    inputs = (q, k, v)
    check_tensors(q, k, v)
    check_mask(q, mask)
    check_on_gpu(q)
    raise_refusal(_kernels_refuse(AttentionProblem.of(q, k, mask.block_q, mask.block_k)))
    hopper_runs = on_hopper(mask.block_q, mask.block_k, q.shape[-1])
    q, k, v = map(tma_readable if hopper_runs else addressable, inputs)
    o = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    if hopper_runs:
        from seerbench.kernels.block_sparse import hopper  # Gluon, which only Hopper needs, is not in every Triton

        hopper.launch(q, k, v, mask, o, lse)
    else:
        triton.launch(q, k, v, mask, o, lse)
    return forward_only("block_sparse_attention_with_lse", inputs, o, lse)


def on_hopper(block_q: int, block_k: int, head_dim: int) -> bool:
    """Return whether hopper.py takes these sizes on this machine: it needs wgmma, TMA and 64 rows per warpgroup."""
    hopper = not INTERPRETED and torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
    return hopper and head_dim in (64, 128) and (block_q, block_k) in HOPPER_BLOCKS
