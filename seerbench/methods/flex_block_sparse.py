"""FlexAttention as a block-sparse kernel of its own, beside ours (`block_sparse_kernels.py` has the list)."""

from __future__ import annotations

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
