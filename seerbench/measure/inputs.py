"""Make the inputs of timings: q, k and v, drawn at random or captured in a model, and block masks for kernels.

The sweeps call these functions; `InputSource` says in the rows what the inputs were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seerbench.baselines.random_blocks import RandomBlocks
from seerbench.core.block_mask import BlockMask, block_count, causal_blocks
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.core.rope import plain_rope, rotate
from seerbench.errors import MeasureError
from seerbench.measure.memory import available_mib
from seerbench.measure.names import AUTHORS, MASKS
from seerbench.methods.block_selection import mask_from_flags, select_top_k
from seerbench.models.architectures import attention_layers
from seerbench.models.hugging_face import for_each_layer
from seerbench.rows.schema import CAPTURED, RANDOM, RANDOM_WEIGHTS

# This is added to the column `inputs` for random inputs, if the method's choice depends on the values of q and k.
MEANINGLESS = "a dynamic method's choice and sparsity mean nothing on them"


@dataclass(frozen=True)
class InputSource:
    """Origin of the inputs of a timing: the columns `inputs*` of the table `cells`.

    Attributes:
        kind: RANDOM, CAPTURED or RANDOM_WEIGHTS of rows/schema.py.
        model: the name of the model; None for random inputs.
        trained_context: the model's training length in tokens where the timed context exceeds it, else None.
    """

    kind: str
    model: str | None = None
    trained_context: int | None = None

    def columns(self, dynamic: bool = False) -> dict[str, str | int | None]:
        """Return the columns by name; `dynamic`: whether the method's choice depends on the values of q and k."""
        text = {
            RANDOM: "random",
            CAPTURED: f"captured:{self.model}",
            RANDOM_WEIGHTS: f"random weights:{self.model}",
        }
        remark = ""
        if self.trained_context is not None:
            remark = f", beyond the {self.trained_context} tokens of its training"
        elif self.kind == RANDOM and dynamic:
            remark = f": {MEANINGLESS}"
        return {
            "inputs": text[self.kind] + remark,
            "inputs_kind": self.kind,
            "inputs_model": self.model,
            "inputs_trained_context": self.trained_context,
        }


RANDOM_INPUTS = InputSource(RANDOM)


def captured_from(model: str, context: int, trained_context: int) -> InputSource:
    """Return the source of inputs captured in a model that was trained on `trained_context` tokens."""
    return InputSource(CAPTURED, model, trained_context if context > trained_context else None)


def random_weights_of(model: str) -> InputSource:
    """Return the source of inputs of a model with random weights."""
    return InputSource(RANDOM_WEIGHTS, model)


def random_inputs(problem: AttentionProblem, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return normally distributed q [B, Hq, N, D], k and v [B, Hk, N, D] in the problem's dtype, on its device.

    Raises MeasureError on a CPU whose memory does not hold them, the output and a map of the blocks.
    """
    if problem.device == "cpu":
        rows = problem.batch * problem.context * problem.head_dim * 2 * (problem.q_heads + problem.kv_heads)
        blocks = block_count(problem.context, problem.block_q) * block_count(problem.context, problem.block_k)
        item = getattr(torch, problem.dtype).itemsize
        needed = (rows * item + problem.batch * problem.q_heads * blocks) / 2**20
        if needed > available_mib():
            raise MeasureError(
                f"{problem.context} tokens need {needed / 1024:.0f} GiB of memory for their inputs, and "
                f"{available_mib() / 1024:.0f} GiB are free; take a shorter context"
            )
    generator = torch.Generator(problem.device).manual_seed(seed)

    def draw(heads: int) -> Tensor:
        shape = (problem.batch, heads, problem.context, problem.head_dim)
        return torch.randn(shape, generator=generator, device=problem.device, dtype=getattr(torch, problem.dtype))

    return draw(problem.q_heads), draw(problem.kv_heads), draw(problem.kv_heads)


def random_cache(problem: AttentionProblem, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return normally distributed q [B, Hq, 1, D] of a new token, and k and v [B, Hk, N + 1, D] of all tokens.

    Raises MeasureError on a CPU whose memory does not hold them.
    """
    dtype, tokens = getattr(torch, problem.dtype), problem.context + 1
    if problem.device == "cpu":
        needed = 2 * problem.batch * problem.kv_heads * tokens * problem.head_dim * dtype.itemsize / 2**20
        if needed > available_mib():
            raise MeasureError(
                f"{problem.batch} sequences of {problem.context} tokens need {needed / 1024:.0f} GiB of memory for "
                f"their cache, and {available_mib() / 1024:.0f} GiB are free; take a smaller batch or context"
            )
    generator = torch.Generator(problem.device).manual_seed(seed)

    def draw(heads: int, tokens: int) -> Tensor:
        shape = (problem.batch, heads, tokens, problem.head_dim)
        return torch.randn(shape, generator=generator, device=problem.device, dtype=dtype)

    return draw(problem.q_heads, 1), draw(problem.kv_heads, tokens), draw(problem.kv_heads, tokens)


def random_mask(q: Tensor, k: Tensor, sparsity: float, problem: AttentionProblem, seed: int) -> BlockMask:
    """Return a mask of random square blocks, drawn per head, that keeps the diagonal.

    Raises MeasureError where the problem's blocks are not square.

    Args:
        q: queries [B, Hq, N, D], of which only the shape and device count.
        k: keys [B, Hk, N, D], as q.
        sparsity: the share of the causal blocks to skip.
        problem: gives the block size.
        seed: seed of the blocks.
    """
    if problem.block_q != problem.block_k:
        raise MeasureError(f"random masks have square blocks, not {problem.block_q} x {problem.block_k}")
    return RandomBlocks(sparsity, problem.block_q, seed).plan(q, k, LayerContext())


def gate_shaped_mask(q: Tensor, k: Tensor, sparsity: float, problem: AttentionProblem, seed: int) -> BlockMask:
    """Return the top-k blocks of smooth random scores: columns that many rows keep, a local band, and some noise.

    Neighbouring rows then share most of their blocks, as they do under a gate but not under a random mask. The
    arguments are those of `random_mask`.
    """
    n = block_count(problem.context, problem.block_k)
    generator = torch.Generator(q.device).manual_seed(seed)
    place = torch.arange(n, device=q.device)
    columns = 2 * torch.randn(problem.batch, problem.q_heads, 1, n, generator=generator, device=q.device)
    band = -(place[:, None] - place).abs().add(1).log()
    noise = torch.randn(problem.batch, problem.q_heads, n, n, generator=generator, device=q.device)
    scores = (columns + band + 0.5 * noise).masked_fill_(place > place[:, None], -torch.inf)
    return select_top_k(scores, sparsity, problem.context, problem.block_k)


def authors_mask(q: Tensor, k: Tensor, sparsity: float, problem: AttentionProblem, seed: int) -> BlockMask:
    """Return one mask of random blocks for all heads, of the same density in each row, as the authors time it.

    Row i keeps floor((1 - sparsity) (i + 1)) of its i + 1 visible blocks, at least one; the diagonal block is kept
    as often as the others. The arguments are those of `random_mask`.

    Source: microsoft/SeerAttention, eval/efficiency, at aba03e3f.
    """
    n = block_count(problem.context, problem.block_k)
    generator = torch.Generator(q.device).manual_seed(seed)
    order = torch.rand(n, n, generator=generator, device=q.device)
    order = order.masked_fill_(~causal_blocks(n, 1, 1, q.device), -1).sort(dim=-1, descending=True).indices
    # Rounded, since 0.1 * 10 must not become 0.
    counts = ((1 - sparsity) * torch.arange(1, n + 1, device=q.device).double()).round(decimals=9).floor()
    first = torch.arange(n, device=q.device) < counts.clamp(min=1)[:, None]
    kept = torch.zeros(n, n, dtype=torch.bool, device=q.device).scatter_(-1, order, first)
    flags = kept.expand(problem.batch, problem.q_heads, n, n)
    return mask_from_flags(flags, problem.context, problem.block_q, problem.block_k)


# Mask generators by their name in the column `mask`.
MaskMaker = Callable[[Tensor, Tensor, float, AttentionProblem, int], BlockMask]
MASK_KINDS: dict[str, MaskMaker] = dict(zip(MASKS, (random_mask, gate_shaped_mask), strict=True))
MASK_KINDS[AUTHORS] = authors_mask


def random_attention(problem: AttentionProblem, seed: int) -> tuple[Tensor, Tensor, Tensor, LayerContext]:
    """Return (q, k, v, layer) of one layer without a model; q and k are rotated, the layer has them unrotated."""
    q, k, v = random_inputs(problem, seed)
    rope = plain_rope(problem.head_dim)
    cos, sin = rope(torch.arange(problem.context, device=problem.device))
    layer = LayerContext(q_unrotated=q, k_unrotated=k, rope=rope)
    return rotate(q, cos, sin), rotate(k, cos, sin), v, layer


def capture(model: Any, tokens: Tensor, layer: int | None = None) -> tuple[Tensor, Tensor, Tensor, LayerContext]:
    """Return (q, k, v, layer context) of one layer in a dense forward pass over tokens [B, N].

    layer: the index of the layer; the middle one by default. Raises MeasureError for a layer that the model lacks.
    """
    return capture_layers(model, tokens, [len(attention_layers(model)) // 2 if layer is None else layer])[0]


def capture_layers(
    model: Any, tokens: Tensor, layers: Iterable[int]
) -> list[tuple[Tensor, Tensor, Tensor, LayerContext]]:
    """Return (q, k, v, layer context) of several layers, in ascending order, in one dense forward pass.

    tokens: int64 [B, N]. layers: indices. Raises MeasureError for a layer that the model lacks.
    """
    count, wanted = len(attention_layers(model)), set(layers)
    missing = sorted(wanted - set(range(count)))
    if missing:
        raise MeasureError(f"the model has no layer {missing[0]}; choose among its layers 0 to {count - 1}")
    captured: list[tuple[Tensor, Tensor, Tensor, LayerContext]] = []

    def see(context: LayerContext, q: Tensor, k: Tensor, v: Tensor) -> None:
        if context.index in wanted:
            captured.append((q, k, v, context))

    for_each_layer(model, tokens, see)
    return captured


def problem_of_model(model: Any, context: int, block: int, batch: int = 1) -> AttentionProblem:
    """Return the problem of the attention in one layer of a model, at `context` tokens and with square blocks."""
    first, weight, q_heads = attention_layers(model)[0], next(model.parameters()), model.config.num_attention_heads
    heads = q_heads, q_heads // first.num_key_value_groups, first.head_dim
    dtype = str(weight.dtype).removeprefix("torch.")
    return AttentionProblem(weight.device.type, dtype, batch, *heads, context, block, block)
