"""Check the tensors that a kernel is given, before anything is allocated or launched.

The checks read shapes, dtypes and devices and no entries, so the host never waits for a GPU. The `api.py` of each
operation calls them, for a CPU and a GPU alike, and the code behind it relies on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem
from seerbench.errors import KernelError
from seerbench.kernels.primitives import INTERPRETED

# Triton's interpreter computes bfloat16 wrongly and without a warning; on a GPU no kernel was tuned for float32.
TRITON_DTYPES = ("float16", "float32") if INTERPRETED else ("float16", "bfloat16")
TRITON_HEAD_DIMS = (16, 32, 64, 128)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensors(q: Tensor, k: Tensor, v: Tensor | None = None) -> None:
    """Check that q [B, Hq, N, D], k and v [B, Hk, N, D] fit together, with Hq a multiple of Hk.

    Raises:
        KernelError: a shape, dtype or device does not fit, a tensor is empty, or it has no floating-point dtype.
    """
    tensors = (q, k) if v is None else (q, k, v)
    if q.dim() != 4 or k.dim() != 4 or not q.numel():
        raise KernelError(f"q, k and v must be [B, H, N, D] without a size of 0, not {_shapes(tensors)}")
    batch, q_heads, tokens, head_dim = q.shape
    kv_heads = k.shape[1]
    fitting = (batch, kv_heads, tokens, head_dim)
    for x in tensors[1:]:
        if x.shape != fitting or not kv_heads:
            raise KernelError(
                f"k and v must be [B, Hk, N, D] with the B, N and D of q; the three are {_shapes(tensors)}"
            )
        if x.dtype != q.dtype or x.device != q.device:
            raise KernelError(
                f"q, k, v must have one dtype and device, not {q.dtype} on {q.device} and {x.dtype} on {x.device}"
            )
    if q.dtype not in _FLOATS:
        raise KernelError(f"attention takes floating-point numbers of 16, 32 or 64 bits, not {q.dtype}")
    if q_heads % kv_heads:
        raise KernelError(f"{q_heads} query heads do not split over {kv_heads} key/value heads")


def _shapes(tensors: Sequence[Tensor]) -> str:
    return ", ".join(str(list(x.shape)) for x in tensors)


def check_mask(q: Tensor, mask: BlockMask) -> None:
    """Check that a block mask has lists for each batch entry, query head and query block of q [B, Hq, N, D].

    Raises:
        KernelError: it has not, or its lists are on another device.
    """
    if not isinstance(mask, BlockMask):
        raise KernelError(f"block-sparse attention takes a seerbench BlockMask, not {type(mask).__name__}")
    check_lists(q, mask.kv_num_blocks, mask.tokens, "; mask.expand(batch, heads) repeats the lists of one as views")


def check_lists(q: Tensor, counts: Tensor, tokens: int, cure: str = "") -> None:
    """Check that a mask's counts [B, Hq, n] over `tokens` tokens are those of q [B, Hq, N, D], on q's device.

    Raises:
        KernelError: they are not. A mask of one head or batch entry is not taken for all, since its density and
            its number of operations would be counted once.
    """
    if tokens != q.shape[2]:
        raise KernelError(f"the mask is of {tokens} tokens, q of {q.shape[2]}")
    if counts.shape[:2] != q.shape[:2]:
        raise KernelError(
            f"the mask has lists for {list(counts.shape[:2])} (batch, heads), q is of {list(q.shape[:2])}{cure}"
        )
    if counts.device != q.device:
        raise KernelError(f"the mask is on {counts.device}, q on {q.device}")


def check_on_gpu(x: Tensor) -> None:
    """Check that a Triton kernel can reach x: it is on the current GPU, or Triton's interpreter runs the kernels.

    Raises:
        KernelError: it cannot.
    """
    if INTERPRETED:
        return
    if not x.is_cuda:
        raise KernelError(f"this kernel runs on a GPU; its input is on {x.device}")
    current = torch.cuda.current_device()
    if x.device.index != current:
        raise KernelError(
            f"the input is on {x.device} and the current GPU is cuda:{current}; "
            f"call torch.cuda.set_device({x.device.index}) first"
        )


def triton_refuses(problem: AttentionProblem) -> str | None:
    """Return why no Triton kernel here can run `problem`, whatever its blocks are; None if they can."""
    if problem.q_heads % problem.kv_heads:
        return f"{problem.q_heads} query heads do not split over {problem.kv_heads} key/value heads"
    if problem.dtype not in TRITON_DTYPES:
        return f"the Triton kernel takes {' and '.join(TRITON_DTYPES)}, not {problem.dtype}"
    if problem.head_dim not in TRITON_HEAD_DIMS:
        return f"the Triton kernel takes head_dim 16, 32, 64 or 128, not {problem.head_dim}"
    return None


def raise_refusal(reason: str | None) -> None:
    """Raise a KernelError with the reason for which a kernel cannot run its input; do nothing for None."""
    if reason:
        raise KernelError(reason)


class _ForwardOnly(torch.autograd.Function):
    """Pass on outputs that were computed from `inputs`, and refuse their gradient."""

    @staticmethod
    def forward(ctx: Any, name: str, outputs: tuple[Tensor, ...], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise KernelError(f"{ctx.name} has no backward pass; run it under torch.no_grad()")


def forward_only(name: str, inputs: Sequence[Tensor | None], *outputs: Tensor) -> tuple[Tensor, ...]:
    """Return the outputs of a kernel without a backward pass, whose gradient is an error and not silently zero.

    Args:
        name: of the operation, for the message.
        inputs: tensors from which the outputs were computed.
        outputs: results, which no gradient reaches.

    Returns:
        The outputs. Their backward pass raises KernelError if an input requires a gradient.
    """
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        return _ForwardOnly.apply(name, outputs, *inputs)
    return outputs
