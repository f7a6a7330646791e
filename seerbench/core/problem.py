"""problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Rope = Callable[[Tensor], tuple[Tensor, Tensor]]  # int positions [n] -> cos [n, D], sin [n, D], fp32


@dataclass(frozen=True)
class AttentionProblem:
    """What a method is asked to run; `Method.refuses` answers for it."""

    device: str  # "cpu" or "cuda"
    dtype: str  # "float32", "float16", "bfloat16"
    batch: int
    q_heads: int
    kv_heads: int
    head_dim: int
    context: int
    block_q: int = 64
    block_k: int = 64


@dataclass
class LayerContext:
    """What a method may know of the layer beside the rotated q and k that it is handed.

    q_unrotated [B, Hq, N, D] and k_unrotated [B, Hk, N, D] are the projections before RoPE
    (after q/k norms where a model has them); None where the caller has no model.
    """

    index: int = 0
    q_unrotated: Tensor | None = None
    k_unrotated: Tensor | None = None
    rope: Rope | None = None
