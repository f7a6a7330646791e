"""FlexAttention and masked SDPA over a BlockMask: the kernel on a CPU, and the differentiable form.

`flex_block_sparse`  PyTorch's FlexAttention, compiled for the device. On a CPU it is a C++ kernel that really
                     skips; on a GPU it is Triton code and competes with ours. Forward only.
`masked_attention`   block-sparse attention as masked SDPA. It skips nothing, but has a backward and takes padding
                     masks: training and padded batches use it, timings never do.
Oracle               seerbench.core.reference.reference_attention, float64.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem
from seerbench.core.reference import repeat_kv
from seerbench.errors import KernelError
from seerbench.kernels.checks import check_mask, check_tensors, forward_only, raise_refusal


def refuses(problem: AttentionProblem) -> str | None:
    """Return why FlexAttention cannot run `problem`, or None."""
    if problem.q_heads % problem.kv_heads:
        return f"{problem.q_heads} query heads do not split over {problem.kv_heads} key/value heads"
    if problem.device == "cpu" and problem.dtype != "float32":
        return f"FlexAttention on a CPU is tested in float32 only, not {problem.dtype}"
    if problem.device == "cuda" and min(problem.block_q, problem.block_k) < 64:
        return "FlexAttention on a GPU needs blocks of at least 64"
    return None


def flex_block_sparse(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """Return attention over the listed blocks, [B, Hq, N, D] in q's dtype, for q [B, Hq, N, D], k, v [B, Hk, N, D].

    The cost is proportional to the number of blocks kept. Rows without a block give zeros. Forward only.

    Raises:
        KernelError: the tensors and the mask do not fit together, or FlexAttention does not run them here; or in
            the backward pass.
    """
    check_tensors(q, k, v)
    check_mask(q, mask)
    return flex_attention(q, k, v, mask.to_flex())


def flex_attention(q: Tensor, k: Tensor, v: Tensor, flex_mask: Any) -> Tensor:
    """Return what `flex_block_sparse` does, for a mask that `BlockMask.to_flex` has converted already.

    Raises:
        KernelError: as `flex_block_sparse`.
    """
    check_tensors(q, k, v)
    batch, heads, tokens, _ = q.shape
    if flex_mask.shape != (batch, heads, tokens, tokens):
        wanted = f"{batch} x {heads} heads x {tokens} x {tokens} tokens"
        raise KernelError(f"the FlexAttention mask is of {list(flex_mask.shape)}, q and k need {wanted}")
    if flex_mask.kv_num_blocks.device != q.device:
        raise KernelError(f"the FlexAttention mask is on {flex_mask.kv_num_blocks.device}, q on {q.device}")
    block_q, block_k = flex_mask.BLOCK_SIZE
    raise_refusal(refuses(AttentionProblem.of(q, k, block_q, block_k)))
    # A tile must divide a block. PyTorch's own choice for the head dimension divides 128.
    small = q.is_cuda and min(block_q, block_k) < 128
    tiles = {"BLOCK_M": block_q, "BLOCK_N": block_k} if small else None
    gqa = k.shape[1] != q.shape[1]
    with torch.no_grad():
        # Detached: on a CPU FlexAttention refuses to compile for tensors that require gradients.
        detached = (x.detach() for x in (q, k, v))
        out = _compiled_flex()(*detached, block_mask=flex_mask, enable_gqa=gqa, kernel_options=tiles)
    return forward_only("compiled FlexAttention", (q, k, v), out)[0]


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | None = None, attention_mask: Tensor | None = None
) -> Tensor:
    """Return attention over the listed blocks by SDPA, differentiable: O(N^2) at any sparsity.

    q [B, Hq, N, D], k and v [B, Hk, N, D] -> [B, Hq, N, D]. mask: block mask, or None for dense causal attention.
    attention_mask: bool [B, 1, N, N], True where a query may see a key (padding, sliding windows); both must allow
    a pair. Rows that see nothing give 0. Raises KernelError where the tensors and the masks do not fit together.
    """
    if mask is not None or attention_mask is None:  # block masks and causality take as many queries as keys
        check_tensors(q, k, v)
    if mask is not None:
        check_mask(q, mask)
    k, v = repeat_kv(k, q.shape[1]), repeat_kv(v, q.shape[1])
    if mask is None and attention_mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    seen = attention_mask if mask is None else mask.to_token_mask()
    if mask is not None and attention_mask is not None:
        seen = seen & attention_mask
    empty = ~seen.any(-1, keepdim=True)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen | empty)
    return out.masked_fill(empty, 0.0)


@functools.cache
def _compiled_flex():
    from torch.nn.attention.flex_attention import flex_attention

    # dynamic: one compilation serves every length and sparsity. fullgraph: past the recompilation limit it raises
    # an error; by default it would silently run the eager form, which skips nothing.
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)
