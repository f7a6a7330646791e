"""Call the kernels of the package flash-attn-4: dense causal attention, and attention over lists of blocks.

Paper     FlashAttention-4 (github.com/Dao-AILab/flash-attention, folder flash_attn/cute)
Upstream  flash-attn-4 4.0.0b36, BSD-3-Clause: CuTe DSL kernels for Hopper and Blackwell, unmodified. The package is
          optional; a method that needs it refuses where it is not installed.
Used by   baselines/flash4.py (dense), seerbench/methods/mask_kernels.py (block masks)

Upstream's tensors are [B, N, H, D]. Ours are [B, H, N, D] and are passed as transposed views, without a copy.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from seerbench.core.problem import AttentionProblem
from seerbench.kernels.checks import check_on_gpu, check_tensors


def refuses(problem: AttentionProblem) -> str | None:
    """Return why FlashAttention-4 cannot run `problem`, or None."""
    if problem.device != "cuda":
        return "FlashAttention-4 runs on an NVIDIA GPU"
    if find_spec("flash_attn") is None or find_spec("flash_attn.cute") is None:
        return "flash-attn-4 is not installed; pip install flash-attn-4"
    if torch.cuda.get_device_capability()[0] not in (9, 10):
        return "FlashAttention-4 has kernels for Hopper and Blackwell"
    if problem.dtype not in ("float16", "bfloat16"):
        return f"FlashAttention-4 takes float16 and bfloat16, not {problem.dtype}"
    if problem.head_dim not in (64, 128):
        return f"FlashAttention-4 is run here with head_dim 64 or 128, not {problem.head_dim}"
    return None


def run(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """Call upstream's flash_attn_func.

    Args:
        q: queries [B, Hq, N, D], float16 or bfloat16.
        k: keys [B, Hk, N, D].
        v: values [B, Hk, N, D].
        options: passed on to upstream's function.

    Returns:
        The output [B, Hq, N, D].

    Raises:
        KernelError: the tensors do not fit together, or are not on the current GPU. Upstream checks block lists.
    """
    check_tensors(q, k, v)
    check_on_gpu(q)
    # Imported here because the package is optional.
    from flash_attn.cute.interface import flash_attn_func

    out = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), **options)
    return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)


@cache
def causal_comparison() -> Any:
    """Return the causal comparison as upstream compiles it into its kernel.

    It is one object for the whole process, since upstream's cache of compiled kernels uses it as a key.
    """
    # Imported here because the package is optional.
    import cutlass.cute as cute

    @cute.jit
    def causal(batch, head, query, key, seqlen_info, aux_tensors):
        return query >= key

    return causal
