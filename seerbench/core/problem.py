"""Describe what a method is asked to run: the shape of an attention problem, and the layer that it is part of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

# A rotary embedding: int positions [n] -> cos and sin, fp32 [n, D] each.
Rope = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class AttentionProblem:
    """Shape of one causal prefill; `Method.refuses` says whether a method can run it.

    Attributes:
        device: "cpu" or "cuda".
        dtype: "float32", "float16" or "bfloat16".
        batch: B.
        q_heads: Hq.
        kv_heads: Hk.
        head_dim: D.
        context: N, in tokens.
        block_q: tokens per query block.
        block_k: tokens per key block.
    """

    device: str
    dtype: str
    batch: int
    q_heads: int
    kv_heads: int
    head_dim: int
    context: int
    block_q: int = 64
    block_k: int = 64

    @classmethod
    def of(cls, q: Tensor, k: Tensor, block_q: int, block_k: int) -> AttentionProblem:
        """Return the problem of q [B, Hq, N, D] and k [B, Hk, N, D] with blocks of these sizes."""
        batch, q_heads, context, head_dim = q.shape
        dtype = str(q.dtype).removeprefix("torch.")
        return cls(q.device.type, dtype, batch, q_heads, k.shape[1], head_dim, context, block_q, block_k)


@dataclass
class LayerContext:
    """Facts about a layer that a method may use, in addition to q and k after RoPE.

    Attributes:
        index: number of the layer, from 0.
        q_unrotated: queries before RoPE (after q norms if the model has them), [B, Hq, N, D]; None without a model.
        k_unrotated: keys before RoPE (after k norms if the model has them), [B, Hk, N, D]; None without a model.
        rope: the model's rotary embedding; None without a model.
    """

    index: int = 0
    q_unrotated: Tensor | None = None
    k_unrotated: Tensor | None = None
    rope: Rope | None = None
