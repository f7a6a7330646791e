"""FlashAttention-4 as a dense baseline.

What it is  every key is read; nothing is planned and nothing is skipped. As a kernel for block masks,
            FlashAttention-4 is in seerbench/methods/mask_kernels.py
Source      FlashAttention-4 (github.com/Dao-AILab/flash-attention, folder flash_attn/cute)
Upstream    flash-attn-4 4.0.0b36, BSD-3-Clause: CuTe DSL kernels for Hopper and Blackwell, an optional package
Fidelity    upstream package, unmodified, with the tiles that it chooses
Timed       attend: the kernel on [B, H, N, D] tensors that are passed as [B, N, H, D] views
"""

from __future__ import annotations

from torch import Tensor

from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.kernels import flash_attention_4
from seerbench.methods.protocol import Method
from seerbench.methods.registry import register


@register(
    "fa4",
    cites="github.com/Dao-AILab/flash-attention",
    needs=("cuda",),
    fidelity="upstream package, unmodified, where installed",
)
class FlashAttention4(Method[None]):
    """Dense causal attention by FlashAttention-4."""

    def implementation(self, problem: AttentionProblem) -> str:
        return "flash-attn-4"

    def refuses(self, problem: AttentionProblem) -> str | None:
        return flash_attention_4.refuses(problem)

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> None:
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: None) -> Tensor:
        return flash_attention_4.run(q, k, v, causal=True)
