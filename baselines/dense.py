"""Dense causal attention, one method per kernel: `dense`, `fa2`, `cudnn`, `flex`, `flash-attn`.

What it is  every key is read; nothing is planned and nothing is skipped
Source      FlashAttention-2 (arXiv:2307.08691), over which the paper's speed-ups are taken; cuDNN's fused
            attention, which is of FlashAttention-3's class on Hopper; FlexAttention (arXiv:2412.05496)
Upstream    PyTorch's scaled_dot_product_attention (SDPA), with one backend forced so that no other is timed under
            its name; its flash backend carries the FlashAttention-2 kernel. `dense` runs on every machine: with
            fa2's kernel on a GPU, with PyTorch's own on a CPU. `flash-attn` is the package of that name
            (BSD-3-Clause)
Fidelity    upstream kernels, unmodified
Timed       attend; there is no plan
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.kernels import flex_attention
from seerbench.methods.protocol import Method
from seerbench.methods.registry import register

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask as FlexMask


@register("dense", cites="arXiv:2307.08691", fidelity="upstream kernel through PyTorch's SDPA")
class Dense(Method[None]):
    """Dense causal attention through SDPA (the FlashAttention-2 kernel on a GPU)."""

    def implementation(self, problem: AttentionProblem) -> str:
        return "sdpa-flash" if problem.device == "cuda" else "sdpa"

    def refuses(self, problem: AttentionProblem) -> str | None:
        if problem.device == "cuda" and problem.dtype == "float32":
            return "the FlashAttention-2 kernel takes float16 and bfloat16"
        return None

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> None:
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: None) -> Tensor:
        gqa = q.shape[1] != k.shape[1]
        if not q.is_cuda:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)


class _OnGpu(Dense):
    """Dense attention by one named kernel that only a GPU has."""

    backend = "sdpa-flash"

    def implementation(self, problem: AttentionProblem) -> str:
        return self.backend

    def refuses(self, problem: AttentionProblem) -> str | None:
        if problem.device != "cuda":
            return f"{self.backend} runs on a GPU only"
        if problem.dtype == "float32":
            return f"{self.backend} takes float16 and bfloat16"
        return None


@register("fa2", cites="arXiv:2307.08691", needs=("cuda",), fidelity="upstream kernel through PyTorch's SDPA")
class FlashAttention2(_OnGpu):
    """The FlashAttention-2 kernel that PyTorch carries, over which the paper's speed-ups are taken."""


@register(
    "cudnn",
    cites="https://developer.nvidia.com/cudnn",
    needs=("cuda",),
    fidelity="upstream kernel through PyTorch's SDPA",
)
class CuDNN(_OnGpu):
    """cuDNN's fused attention through SDPA: a dense baseline of FlashAttention-3's class on Hopper."""

    backend = "sdpa-cudnn"

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: None) -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


@register(
    "flash-attn",
    cites="arXiv:2307.08691",
    needs=("cuda", "flash_attn"),
    fidelity="upstream package, unmodified, where installed",
)
class FlashAttnPackage(_OnGpu):
    """FlashAttention-2 from the flash-attn package."""

    backend = "flash-attn"

    def refuses(self, problem: AttentionProblem) -> str | None:
        # FlashAttention-4 installs a folder of the same name without this module.
        if find_spec("flash_attn") is None or find_spec("flash_attn.flash_attn_interface") is None:
            return "flash-attn is not installed; pip install flash-attn"
        return super().refuses(problem)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: None) -> Tensor:
        # Imported here because the package is optional.
        from flash_attn import flash_attn_func

        return flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), causal=True).transpose(1, 2)


@register("flex", cites="arXiv:2412.05496", fidelity="upstream kernel, compiled by PyTorch")
class Flex(Method[None]):
    """Dense causal attention through compiled FlexAttention."""

    block = 128  # FlexAttention's default block size

    def implementation(self, problem: AttentionProblem) -> str:
        return "flex" if problem.device == "cuda" else "flex-cpu"

    def refuses(self, problem: AttentionProblem) -> str | None:
        return flex_attention.refuses(replace(problem, block_q=self.block, block_k=self.block))

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> None:
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: None) -> Tensor:
        return flex_attention.flex_attention(q, k, v, _causal_mask(*q.shape[:3], self.block, q.device))


@lru_cache(maxsize=1)
def _causal_mask(batch: int, heads: int, tokens: int, block: int, device: torch.device) -> FlexMask:
    """Return every causal block in FlexAttention's form. It is cached for each shape, so it is not timed."""
    n = block_count(tokens, block)
    counts = torch.arange(1, n + 1, dtype=torch.int32, device=device).expand(batch, heads, n)
    columns = torch.arange(n, dtype=torch.int32, device=device).expand(batch, heads, n, n)
    return BlockMask.unchecked(counts, columns, tokens, block, block).to_flex()
