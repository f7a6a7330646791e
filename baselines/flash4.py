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

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.methods.protocol import BlockSparse
from seerbench.methods.registry import register


@register(
    "fa4",
    cites="github.com/Dao-AILab/flash-attention",
    needs=("cuda",),
    fidelity="upstream package, unmodified, where installed",
)
class FlashAttention4:
    """Dense causal attention by FlashAttention-4."""

    sparsity = None

    def implementation(self, case: AttentionProblem) -> str:
        return "flash-attn-4"

    def refuses(self, case: AttentionProblem) -> str | None:
        return _refuses(case)

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> None:
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: None) -> Tensor:
        return _run(q, k, v, causal=True)


class FlashAttention4Sparse(BlockSparse):
    """Any BlockMask by FlashAttention-4's block-sparse kernel."""

    def implementation(self, case: AttentionProblem) -> str:
        return "flash-attn-4-block-sparse"

    def refuses(self, case: AttentionProblem) -> str | None:
        if (case.block_q, case.block_k) not in ((64, 64), (128, 128)):
            blocks = f"{case.block_q} x {case.block_k}"
            return f"FlashAttention-4's block-sparse kernel is run here with blocks of 64 or 128, not {blocks}"
        return _refuses(case)

    def layout(self, mask: BlockMask) -> Any:
        """FA-4 takes the blocks on the diagonal, which compare positions, apart from those below it."""
        from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

        partial_num, partial, full_num, full = mask.split_diagonal()
        columns = block_count(mask.tokens, mask.block_k)  # it takes lists of the full width only
        lists = [(partial_num, partial), (full_num, full)]
        padded = [(num, torch.nn.functional.pad(at, (0, columns - at.shape[-1])).contiguous()) for num, at in lists]
        return BlockSparseTensorsTorch(*padded[0], *padded[1], block_size=(mask.block_q, mask.block_k))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: Any) -> Tensor:
        return _run(q, k, v, mask_mod=_causal(), block_sparse_tensors=plan, pack_gqa=False)


def _refuses(case: AttentionProblem) -> str | None:
    if case.device != "cuda":
        return "FlashAttention-4 runs on an NVIDIA GPU"
    if find_spec("flash_attn") is None or find_spec("flash_attn.cute") is None:
        return "flash-attn-4 is not installed; pip install flash-attn-4"
    if torch.cuda.get_device_capability()[0] not in (9, 10):
        return "FlashAttention-4 has kernels for Hopper and Blackwell"
    if case.dtype not in ("float16", "bfloat16"):
        return f"FlashAttention-4 takes float16 and bfloat16, not {case.dtype}"
    if case.head_dim not in (64, 128):
        return f"FlashAttention-4 is run here with head_dim 64 or 128, not {case.head_dim}"
    return None


def _run(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    from flash_attn.cute.interface import flash_attn_func

    # [B, H, N, D] -> [B, N, H, D]: views, both ways.
    out = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), **options)
    return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)


@cache
def _causal() -> Any:
    """The causal comparison as FA-4 compiles it into its kernel; one object, since it is a key of its cache."""
    import cutlass.cute as cute

    @cute.jit
    def causal(batch, head, query, key, seqlen_info, aux_tensors):
        return query >= key

    return causal
