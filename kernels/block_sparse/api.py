"""Block-sparse attention: checks, choice of the kernel, gradients.

`block_sparse_attention` is what methods call. On a GPU it runs hopper.py or triton.py and, for gradients,
triton_backward.py; on a CPU FlexAttention. The reference is seerbench.core.reference.reference_attention, which
runs on any device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem
from seerbench.kernels import flex_attention
from seerbench.kernels.block_sparse import triton
from seerbench.kernels.block_sparse.triton_backward import gradients
from seerbench.kernels.primitives import unit_stride

HOPPER_BLOCKS = ((64, 64), (128, 64), (128, 128))  # (block_q, block_k) that hopper.py takes


def implementation(problem: AttentionProblem) -> str:
    """Return the name of the kernel that runs `problem`, as it goes into the rows."""
    if problem.device == "cpu":
        return "flex-cpu"
    return "gluon-hopper" if on_hopper(problem.block_q, problem.block_k, problem.head_dim) else "triton"


def refuses(problem: AttentionProblem) -> str | None:
    """Return why the kernel cannot run `problem`, or None."""
    if problem.device == "cpu":
        return flex_attention.refuses(problem)
    if problem.q_heads % problem.kv_heads:
        return f"{problem.q_heads} query heads do not split over {problem.kv_heads} key/value heads"
    if problem.dtype not in ("float16", "bfloat16"):
        return f"the Triton kernel takes float16 and bfloat16, not {problem.dtype}"
    if problem.head_dim not in (16, 32, 64, 128):
        return f"the Triton kernel takes head_dim 16, 32, 64 or 128, not {problem.head_dim}"
    if (problem.block_q, problem.block_k) not in triton.TILES:
        return f"the Triton kernel takes blocks {sorted(triton.TILES)}, not {problem.block_q} x {problem.block_k}"
    return None


def block_sparse_attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """Return attention over the listed blocks, [B, Hq, N, D] in q's dtype, for q [B, Hq, N, D], k, v [B, Hk, N, D].

    The cost is proportional to the number of blocks kept. Rows without a block give zeros. Differentiable on a GPU;
    on a CPU use `flex_attention.masked_attention` for gradients.
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
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of q, k and v from `do`, that of the output [B, Hq, N, D]; None for the mask."""
        q, k, v, o, lse = ctx.saved_tensors
        return *gradients(q, k, v, o, lse, do, ctx.mask), None


def block_sparse_attention_with_lse(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> tuple[Tensor, Tensor]:
    """Return attention [B, Hq, N, D] and its log-sum-exp [B, Hq, N] on a GPU, without gradients.

    The log-sum-exp is fp32 and natural; it is -inf in a row that sees no key.
    """
    q, k, v = map(unit_stride, (q, k, v))
    o = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    if on_hopper(mask.block_q, mask.block_k, q.shape[-1]):
        from seerbench.kernels.block_sparse import hopper  # Gluon, which only Hopper needs, is not in every Triton

        hopper.launch(q, k, v, mask, o, lse)
    else:
        triton.launch(q, k, v, mask, o, lse)
    return o, lse


def on_hopper(block_q: int, block_k: int, head_dim: int) -> bool:
    """Return whether hopper.py takes these sizes on this machine: it needs wgmma, TMA and 64 rows per warpgroup."""
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
    return hopper and head_dim in (64, 128) and (block_q, block_k) in HOPPER_BLOCKS
