"""FlashAttention-4: dense, and as a kernel for any block mask.

What      `fa4` reads every key. FlashAttention4Sparse runs a BlockMask: the dense FA-4 or block-sparse FA-4
          kernel that ours is timed beside
Source    FlashAttention-4 (github.com/Dao-AILab/flash-attention, flash_attn/cute); FlexAttention's block
          masks (arXiv:2412.05496) are what its block-sparse lists are modelled on
Upstream  flash-attn-4 4.0.0b36, BSD-3-Clause, its CuTe DSL kernels for Hopper and Blackwell; an optional package
Fidelity  upstream kernels, unmodified, with the tiles that the package chooses
Timed     attend: the kernel on [B, H, N, D] tensors seen as [B, N, H, D], with no copy. The lists of a mask in
          FA-4's layout are made before (`layout`), as part of a plan
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
