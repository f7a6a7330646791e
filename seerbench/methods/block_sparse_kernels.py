"""block_sparse_kernels."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import Tensor

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem
from seerbench.kernels.flex_attention import flex_attention, refuses
from seerbench.methods.protocol import BlockSparse


class Flex(BlockSparse):
    """Compiled FlexAttention as a kernel of its own, its masks made before it is timed."""

    def implementation(self, case: AttentionProblem) -> str:
        return f"flex-{case.device}"

    def refuses(self, case: AttentionProblem) -> str | None:
        return refuses(case)

    def layout(self, mask: BlockMask) -> Any:
        """The mask as torch.nn.attention.flex_attention.BlockMask."""
        return mask.to_flex()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: Any) -> Tensor:
        return flex_attention(q, k, v, plan)


DENSE = ("dense", "fa2", "cudnn", "fa4", "flash-attn", "flex")
# Block-sparse kernels for a given mask, by the name that a preset and the rows have for them.
SPARSE_KERNELS = {
    "block_sparse": "seerbench.methods.protocol:BlockSparse",
    "fa4-sparse": "seerbench.baselines.flash4:FlashAttention4Sparse",
    "flex-sparse": "seerbench.methods.block_sparse_kernels:Flex",
}


def sparse_kernel(name: str) -> Any:
    """One of SPARSE_KERNELS; its module is imported only now."""
    module, _, kind = SPARSE_KERNELS[name].partition(":")
    return getattr(import_module(module), kind)()


def laid_out(kernel: Any, mask: BlockMask | None) -> Any:
    """The mask as the kernel takes it: through its `layout` if it has one. Part of a plan, so not of `attend`."""
    return kernel.layout(mask) if mask is not None and hasattr(kernel, "layout") else mask
