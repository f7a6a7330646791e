"""api."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem
from seerbench.kernels import flex_attention
from seerbench.kernels.block_sparse.triton import TILES, launch
from seerbench.kernels.block_sparse.triton_backward import gradients

HOPPER_BLOCKS = ((64, 64), (128, 64), (128, 128))  # (block_q, block_k) of block_sparse_hopper.py


def implementation(case: AttentionProblem) -> str:
    """The name of the kernel that runs `case`; it goes into the rows."""
    if case.device == "cpu":
        return "flex-cpu"
    return "gluon-hopper" if _hopper(case.block_q, case.block_k, case.head_dim) else "triton"


def refuses(case: AttentionProblem) -> str | None:
    """Why the kernel cannot run `case`, or None."""
    if case.device == "cpu":
        return flex_attention.refuses(case)
    if case.q_heads % case.kv_heads:
        return f"{case.q_heads} query heads do not split over {case.kv_heads} key/value heads"
    if case.dtype not in ("float16", "bfloat16"):
        return f"the Triton kernel takes float16 and bfloat16, not {case.dtype}"
    if case.head_dim not in (16, 32, 64, 128):
        return f"the Triton kernel takes head_dim 16, 32, 64 or 128, not {case.head_dim}"
    if (case.block_q, case.block_k) not in TILES:
        return f"the Triton kernel takes blocks {sorted(TILES)}, not {case.block_q} x {case.block_k}"
    return None


def block_sparse_attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """q [B, Hq, N, D], k and v [B, Hk, N, D] -> [B, Hq, N, D] in q's dtype.

    Cost is proportional to the blocks kept. Rows without a block give zeros. Differentiable on a GPU; on a CPU
    `flex_attention.masked_attention` is.
    """
    if not q.is_cuda:
        return flex_attention.flex_block_sparse(q, k, v, mask)
    from seerbench.kernels.block_sparse.api import BlockSparseAttention

    return BlockSparseAttention.apply(q, k, v, mask)


def block_sparse_attention_with_lse(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> tuple[Tensor, Tensor]:
    """The same on a GPU, with the log-sum-exp [B, Hq, N] in fp32, natural log; -inf where a row sees nothing."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    o = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    if _hopper(mask.block_q, mask.block_k, q.shape[-1]):
        from seerbench.kernels.block_sparse import hopper as block_sparse_hopper

        block_sparse_hopper.launch(q, k, v, mask, o, lse)
    else:
        launch(q, k, v, mask, o, lse)
    return o, lse


def _hopper(block_q: int, block_k: int, head_dim: int) -> bool:
    """Whether block_sparse_hopper.py takes it: wgmma and TMA, 64 rows a warpgroup."""
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
    return hopper and head_dim in (64, 128) and (block_q, block_k) in HOPPER_BLOCKS


class BlockSparseAttention(torch.autograd.Function):
    """`block_sparse_attention` on a GPU with gradients for q, k and v."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
        """q [B, Hq, N, D], k and v [B, Hk, N, D] -> [B, Hq, N, D]."""
        o, lse = block_sparse_attention_with_lse(q, k, v, mask)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.mask = mask
        return o

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """do [B, Hq, N, D] -> gradients of q, k and v, and none for the mask."""
        q, k, v, o, lse = ctx.saved_tensors
        return *gradients(q, k, v, o, lse, do, ctx.mask), None
