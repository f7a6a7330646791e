"""The list of block-sparse kernels that run a given mask, and of the dense methods. Imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seerbench.core.block_mask import BlockMask

DENSE = ("dense", "fa2", "cudnn", "fa4", "flash-attn", "flex")
# Block-sparse kernels for a given mask, by the name that a preset and the rows have for them.
SPARSE_KERNELS = {
    "block_sparse": "seerbench.methods.protocol:BlockSparse",
    "fa4-sparse": "seerbench.baselines.flash4:FlashAttention4Sparse",
    "flex-sparse": "seerbench.methods.flex_block_sparse:Flex",
}


def sparse_kernel(name: str) -> Any:
    """One of SPARSE_KERNELS; its module is imported only now."""
    module, _, kind = SPARSE_KERNELS[name].partition(":")
    return getattr(import_module(module), kind)()


def laid_out(kernel: Any, mask: BlockMask | None) -> Any:
    """The mask as the kernel takes it: through its `layout` if it has one. Part of a plan, so not of `attend`."""
    return kernel.layout(mask) if mask is not None and hasattr(kernel, "layout") else mask
