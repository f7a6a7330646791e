"""Attention of one new token over listed blocks of a cache: checks, choice of the implementation.

triton.py runs on a GPU, reference.py on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seerbench.errors import KernelError
from seerbench.kernels.checks import (
    TRITON_DTYPES,
    TRITON_HEAD_DIMS,
    check_on_gpu,
    forward_only,
    raise_refusal,
)
from seerbench.kernels.decode import reference, triton
from seerbench.kernels.decode.lists import CacheLists


def decode_attention(q: Tensor, k: Tensor, v: Tensor, lists: CacheLists) -> Tensor:
    """Return attention of one new token per sequence over listed blocks, [B, Hq, 1, D] in q's dtype.

    A query without a key gives zeros. Forward only.

    Args:
        q: queries [B, Hq, 1, D] after RoPE.
        k: the cache's keys [B, Hk, room, D] after RoPE. What `lists` does not read may hold anything.
        v: the cache's values, of the same shape.
        lists: the blocks that are read. Its entries are not checked, since that would wait for a GPU: they must be
            blocks of the sequence.

    Raises:
        KernelError: the tensors do not fit together, or on a GPU no kernel runs them; or in the backward pass.
    """
    _check(q, k, v, lists)
    if q.is_cuda:
        check_on_gpu(q)
        raise_refusal(refuses(q.dtype, q.shape[3], q.shape[1] // k.shape[1], lists.block))
    run = triton if q.is_cuda else reference
    with torch.no_grad():
        out = run.decode_attention(q, k, v, lists)
    return forward_only("decode_attention", (q, k, v), out)[0]


def refuses(dtype: torch.dtype, head_dim: int, group: int, block: int) -> str | None:
    """Return why the Triton kernel cannot run a problem, or None.

    Args:
        dtype: of q, k and v.
        head_dim: D.
        group: query heads per key/value head.
        block: tokens per block.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in TRITON_DTYPES:
        return f"the Triton kernel takes {' and '.join(TRITON_DTYPES)}, not {name}"
    if head_dim not in TRITON_HEAD_DIMS:
        return f"the Triton kernel takes head_dim 16, 32, 64 or 128, not {head_dim}"
    if group > triton.MAX_GROUP:
        return f"the decode kernel takes at most {triton.MAX_GROUP} query heads per key/value head, not {group}"
    if block not in triton.BLOCKS:
        return f"the decode kernel takes blocks of 16, 32, 64 or 128 tokens, not {block}"
    return None


def _check(q: Tensor, k: Tensor, v: Tensor, lists: CacheLists) -> None:
    """Raise KernelError unless queries, cache and lists fit together. It reads shapes, dtypes and devices only."""
    shapes = ", ".join(str(list(x.shape)) for x in (q, k, v))
    if q.dim() != 4 or q.shape[2] != 1 or k.dim() != 4 or not q.numel() or not k.numel():
        raise KernelError(f"q is [B, Hq, 1, D], k and v are [B, Hk, room, D], none of size 0; these are {shapes}")
    (batch, heads, _, head_dim), kv_heads = q.shape, k.shape[1]
    if (k.shape[0], k.shape[3]) != (batch, head_dim) or v.shape != k.shape:
        raise KernelError(f"k and v must be [B, Hk, room, D] with the B and D of q; q, k and v are {shapes}")
    if heads % kv_heads:
        raise KernelError(f"{heads} query heads do not split over {kv_heads} key/value heads")
    for x in (k, v):
        if x.dtype != q.dtype or x.device != q.device:
            raise KernelError(
                f"q, k, v must have one dtype and device, not {q.dtype} on {q.device} and {x.dtype} on {x.device}"
            )
    if not q.is_floating_point() or q.element_size() < 2:
        raise KernelError(f"attention takes floating-point numbers of 16, 32 or 64 bits, not {q.dtype}")
    if not isinstance(lists.block, int) or lists.block < 1:
        raise KernelError(f"a block has at least one token, not {lists.block!r}")
    blocks = lists.blocks
    wanted = {
        "counts": (lists.counts, (batch, kv_heads)),
        "blocks": (blocks, (batch, kv_heads, max(1, blocks.shape[-1] if blocks.dim() else 1))),
        "first": (lists.first, (batch,)),
        "end": (lists.end, (batch,)),
    }
    for name, (x, shape) in wanted.items():
        if x.shape != shape or x.dtype != torch.int32 or x.device != q.device:
            raise KernelError(
                f"the lists' {name} must be int32 {list(shape)} on {q.device}, not {x.dtype} {list(x.shape)} on "
                f"{x.device}"
            )
