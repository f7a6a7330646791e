"""inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seerbench.baselines.random_blocks import RandomBlocks
from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.core.rope import plain_rope, rotate
from seerbench.methods.block_selection import select_top_k
from seerbench.models.hugging_face import attention_layers, for_each_layer


def random_inputs(case: AttentionProblem, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Normal q [B, Hq, N, D], k and v [B, Hk, N, D] on the case's device."""
    generator = torch.Generator(case.device).manual_seed(seed)

    def draw(heads: int) -> Tensor:
        shape = (case.batch, heads, case.context, case.head_dim)
        return torch.randn(shape, generator=generator, device=case.device, dtype=getattr(torch, case.dtype))

    return draw(case.q_heads), draw(case.kv_heads), draw(case.kv_heads)


def random_mask(q: Tensor, k: Tensor, sparsity: float, case: AttentionProblem, seed: int) -> BlockMask:
    """Random square blocks for each head, the diagonal kept: the mask of the kernel timings."""
    if case.block_q != case.block_k:
        raise ValueError(f"random masks have square blocks, not {case.block_q} x {case.block_k}")
    return RandomBlocks(sparsity, case.block_q, seed).plan(q, k, LayerContext())


def gate_shaped_mask(q: Tensor, k: Tensor, sparsity: float, case: AttentionProblem, seed: int) -> BlockMask:
    """Top-k blocks of smooth random scores: columns that many rows want, a local band, some noise.

    Neighbouring rows share most of their blocks then, as under a gate and unlike under a random mask.
    """
    n = block_count(case.context, case.block_k)
    generator = torch.Generator(q.device).manual_seed(seed)
    place = torch.arange(n, device=q.device)
    wanted = 2 * torch.randn(case.batch, case.q_heads, 1, n, generator=generator, device=q.device)
    near = -(place[:, None] - place).abs().add(1).log()
    noise = torch.randn(case.batch, case.q_heads, n, n, generator=generator, device=q.device)
    scores = (wanted + near + 0.5 * noise).masked_fill_(place > place[:, None], -torch.inf)
    return select_top_k(scores, sparsity, case.context, case.block_k)


# By the name that goes into the rows' `mask`.
MASK_KINDS = {"random": random_mask, "gate-shaped": gate_shaped_mask}


def random_attention(case: AttentionProblem, seed: int) -> tuple[Tensor, Tensor, Tensor, LayerContext]:
    """(q, k, v, Layer) of one layer without a model: normal q, k, v, the first two also rotated."""
    q, k, v = random_inputs(case, seed)
    rope = plain_rope(case.head_dim)
    cos, sin = rope(torch.arange(case.context, device=case.device))
    layer = LayerContext(q_unrotated=q, k_unrotated=k, rope=rope)
    return rotate(q, cos, sin), rotate(k, cos, sin), v, layer


def capture(model: Any, tokens: Tensor, layer: int | None = None) -> tuple[Tensor, Tensor, Tensor, LayerContext]:
    """(q, k, v, Layer) of one layer of a dense forward over tokens [B, N]; the middle layer by default."""
    wanted = len(attention_layers(model)) // 2 if layer is None else layer
    found = []

    def see(at: LayerContext, q: Tensor, k: Tensor, v: Tensor) -> None:
        if at.index == wanted:
            found.append((q, k, v, at))

    for_each_layer(model, tokens, see)
    if not found:
        raise ValueError(f"the model has no layer {wanted}; it has {len(attention_layers(model))}")
    return found[0]


def problem_of(q: Tensor, k: Tensor, block: int) -> AttentionProblem:
    """The Case of tensors q [B, Hq, N, D] and k [B, Hk, N, D]."""
    batch, q_heads, context, head_dim = q.shape
    dtype = str(q.dtype).removeprefix("torch.")
    return AttentionProblem(q.device.type, dtype, batch, q_heads, k.shape[1], head_dim, context, block, block)


def problem_of_model(model: Any, context: int, block: int, batch: int = 1) -> AttentionProblem:
    """The Case of one layer's attention in a model."""
    first, weight, q_heads = attention_layers(model)[0], next(model.parameters()), model.config.num_attention_heads
    heads = q_heads, q_heads // first.num_key_value_groups, first.head_dim
    dtype = str(weight.dtype).removeprefix("torch.")
    return AttentionProblem(weight.device.type, dtype, batch, *heads, context, block, block)
