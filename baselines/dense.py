"""Dense causal attention.

What      every key is read; nothing is planned, nothing is skipped
Source    FlashAttention-2 (arXiv:2307.08691), the paper's denominator
Upstream  PyTorch's scaled_dot_product_attention; on a GPU its flash backend is forced, which carries
          the FlashAttention-2 kernel, so that no other backend is timed under this name. `cudnn` forces
          cuDNN's attention, the FlashAttention-3-class kernel on Hopper
Fidelity  upstream kernel, unmodified
Timed     attend (there is no plan)
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from seerbench.attention import Case, Layer
from seerbench.registry import register


@register("dense", cites="arXiv:2307.08691")
class Dense:
    """Dense causal attention through SDPA (the FlashAttention-2 kernel on a GPU)."""

    sparsity = None

    def implementation(self, device: str) -> str:
        return "sdpa-flash" if device == "cuda" else "sdpa"

    def refuses(self, case: Case) -> str | None:
        if case.device == "cuda" and case.dtype == "float32":
            return "the FlashAttention-2 kernel takes float16 and bfloat16"
        return None

    def plan(self, q: Tensor, k: Tensor, layer: Layer) -> None:
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: None) -> Tensor:
        gqa = q.shape[1] != k.shape[1]
        if not q.is_cuda:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)


@register("cudnn", cites="arXiv:2407.08608")
class Cudnn(Dense):
    """Dense causal attention through SDPA with cuDNN's kernel."""

    def implementation(self, device: str) -> str:
        return "sdpa-cudnn"

    def refuses(self, case: Case) -> str | None:
        if case.device != "cuda":
            return "cuDNN's attention runs on an NVIDIA GPU"
        if case.dtype == "float32":
            return "cuDNN's attention takes float16 and bfloat16"
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: None) -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
