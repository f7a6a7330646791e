"""Run a given BlockMask through a block-sparse kernel: ours, FlexAttention's or FlashAttention-4's.

    BlockSparseKernel      our kernel (kernels/block_sparse), and the interface of the others
    FunctionKernel         any function of q, k, v and the mask
    FlexKernel             PyTorch's compiled FlexAttention
    FlashAttention4Kernel  the kernel of the package flash-attn-4

`block_sparse_kernels.py` lists them by name without importing them. A kernel chooses no blocks; a method does
(protocol.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.problem import AttentionProblem
from seerbench.kernels import flash_attention_4, flex_attention
from seerbench.kernels.block_sparse import api


class BlockSparseKernel:
    """Run a BlockMask through our kernel. Other kernels override all four methods."""

    def implementation(self, problem: AttentionProblem) -> str:
        """Return the name under which rows record the kernel that `attend` runs for `problem`."""
        return api.implementation(problem)

    def refuses(self, problem: AttentionProblem) -> str | None:
        """Return why this kernel cannot run `problem`, or None if it can."""
        return api.refuses(problem)

    def layout(self, mask: BlockMask) -> Any:
        """Return the mask as `attend` takes it. Making this layout is part of a plan and not of `attend`."""
        return mask

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: Any) -> Tensor:
        """Compute attention over the blocks of a mask.

        Args:
            q: queries [B, Hq, N, D].
            k: keys [B, Hk, N, D].
            v: values [B, Hk, N, D].
            plan: what `layout` returned.

        Returns:
            The output [B, Hq, N, D] in q's dtype.
        """
        return api.block_sparse_attention(q, k, v, plan)


@dataclass
class FunctionKernel(BlockSparseKernel):
    """Run a BlockMask through a function, such as that of a new kernel.

    Attributes:
        name: its name in the rows.
        function: (q, k, v, mask) -> output, with the shapes of `attend`.
        refusal: returns why the function cannot run a problem, or None.
    """

    name: str
    function: Callable[[Tensor, Tensor, Tensor, BlockMask], Tensor]
    refusal: Callable[[AttentionProblem], str | None] = lambda problem: None

    def implementation(self, problem: AttentionProblem) -> str:
        """Return the name: a function has one implementation."""
        return self.name

    def refuses(self, problem: AttentionProblem) -> str | None:
        """Return why the function cannot run a problem, or None."""
        return self.refusal(problem)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockMask) -> Tensor:
        """Return attention [B, Hq, N, D] over the kept blocks: q [B, Hq, N, D], k and v [B, Hk, N, D]."""
        return self.function(q, k, v, plan)


class FlexKernel(BlockSparseKernel):
    """Run a BlockMask through compiled FlexAttention; its mask is made in `layout`."""

    def implementation(self, problem: AttentionProblem) -> str:
        return f"flex-{problem.device}"

    def refuses(self, problem: AttentionProblem) -> str | None:
        return flex_attention.refuses(problem)

    def layout(self, mask: BlockMask) -> Any:
        return mask.to_flex()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: Any) -> Tensor:
        return flex_attention.flex_attention(q, k, v, plan)


class FlashAttention4Kernel(BlockSparseKernel):
    """Run a BlockMask through FlashAttention-4's block-sparse kernel."""

    def implementation(self, problem: AttentionProblem) -> str:
        return "flash-attn-4-block-sparse"

    def refuses(self, problem: AttentionProblem) -> str | None:
        if (problem.block_q, problem.block_k) not in ((64, 64), (128, 128)):
            blocks = f"{problem.block_q} x {problem.block_k}"
            return f"FlashAttention-4's block-sparse kernel is run here with blocks of 64 or 128, not {blocks}"
        return flash_attention_4.refuses(problem)

    def layout(self, mask: BlockMask) -> Any:
        """Return FlashAttention-4's lists: blocks on the diagonal, which compare positions, and blocks below it."""
        # Imported here because the package is optional.
        from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

        partial_num, partial, full_num, full = mask.split_diagonal()
        columns = block_count(mask.tokens, mask.block_k)  # it takes lists of the full width only
        lists = [(partial_num, partial), (full_num, full)]
        padded = [(num, torch.nn.functional.pad(at, (0, columns - at.shape[-1])).contiguous()) for num, at in lists]
        return BlockSparseTensorsTorch(*padded[0], *padded[1], block_size=(mask.block_q, mask.block_k))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: Any) -> Tensor:
        causal = flash_attention_4.causal_comparison()
        return flash_attention_4.run(q, k, v, mask_mod=causal, block_sparse_tensors=plan, pack_gqa=False)
