"""Put a method into a Hugging Face model, or show a function the q, k and v of every layer.

    attention_method   a context in which all attention layers of a model use a method
    for_each_layer     a dense forward pass that calls a function once per layer
    chunked_mlps       a context in which long prompts need less memory

This file is between methods and whatever runs a model: training, offline searches and measurements.

A method enters through transformers' attention interface and through its mask interface, since a model drops
padding masks without a warning if only the first is registered. The gate needs q and k before RoPE, which the
attention interface does not pass. Forward hooks on the projections, or on the q and k norms of models that have
them, store both. The Llama, Mistral and Qwen architectures are supported.

Prefill runs the method. Decoding (fewer queries than keys) is dense, as in the paper. Batches with padding, and
layers with a sliding window, run the method's mask in its masked form, which gives the same numbers and skips
nothing. Accuracy may be measured in that form, time may not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem, LayerContext, Rope
from seerbench.core.reference import repeat_kv
from seerbench.core.rope import rope_of
from seerbench.errors import ModelError, Refused
from seerbench.kernels.flex_attention import masked_attention
from seerbench.methods.protocol import Method, realised_sparsity

NAME = "seerbench"  # the name under which our attention function is registered with transformers
# Tokens that an MLP processes at a time in a long prefill. This many keep the matrix units of any GPU busy.
MLP_CHUNK = 16384


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """Return the attention modules in the order of their layers.

    Raises:
        ModelError: no module has the projections from which q and k are read.
    """
    layers = [module for module in model.modules() if hasattr(module, "layer_idx") and hasattr(module, "q_proj")]
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no attention layers with q_proj and k_proj; "
            "SeerBench supports the Llama, Mistral and Qwen architectures"
        )
    return sorted(layers, key=lambda module: module.layer_idx)


@dataclass
class Record:
    """The sparsity that the layers realised while a method was in the model."""

    sparsity: list[float] = field(default_factory=list)  # realised, one entry per layer and forward pass
    planned: bool = False  # whether any layer had a plan; a dense method has none

    def mean_sparsity(self) -> float:
        """Return the realised sparsity, averaged over layers and forward passes; 0 if nothing was recorded."""
        return sum(self.sparsity) / len(self.sparsity) if self.sparsity else 0.0


@dataclass
class _LayerState:
    """State of one layer while a method is in the model, kept as attribute `seerbench` of its attention module."""

    method: Method
    rope: Rope
    record: Record | None
    part: Callable[[str], AbstractContextManager]
    accepted: set[AttentionProblem]  # the problems that the method does not refuse; shared by all layers
    q_unrotated: Tensor | None = None  # [B, Hq, N, D], from the projection until the layer's plan is made
    k_unrotated: Tensor | None = None  # [B, Hk, N, D]


@contextmanager
def attention_method(
    model: Any,
    method: Method,
    count: bool = True,
    part: Callable[[str], AbstractContextManager] = nullcontext,
) -> Iterator[Record]:
    """Put `method` into every attention layer of `model` until the block ends.

    Args:
        model: a causal language model of transformers.
        method: used for the prefill of every layer.
        count: whether to record the realised sparsity. Counting waits for the GPU once per layer, so timed forward
            passes do without.
        part: makes the context that is entered around each layer's "plan" and "attend", for timing them.

    Yields:
        The Record that forward passes fill; it stays empty without `count`.

    Raises:
        ModelError: the architecture is not supported.
        Refused: from a forward pass that the method cannot run.
    """
    _register()
    record, rope, hooks = Record(), rope_of(model), []
    accepted: set[AttentionProblem] = set()
    layers = attention_layers(model)
    before = model.config._attn_implementation
    for layer in layers:
        layer.seerbench = _LayerState(method, rope, record if count else None, part, accepted)
        for name in ("q", "k"):
            projection = getattr(layer, f"{name}_norm", None) or getattr(layer, f"{name}_proj")
            store = functools.partial(_store_projection, layer, f"{name}_unrotated")
            hooks.append(projection.register_forward_hook(store))
    model.set_attn_implementation(NAME)
    try:
        yield record
    finally:
        model.set_attn_implementation(before)
        for hook in hooks:
            hook.remove()
        for layer in layers:
            del layer.seerbench


def for_each_layer(
    model: Any, tokens: Tensor, see: Callable[[LayerContext, Tensor, Tensor, Tensor], Tensor | None]
) -> None:
    """Run a dense forward pass of `tokens` and call `see(layer, q, k, v)` in every layer.

    The activations of one layer exist at a time, so a model of any depth fits. The pass runs without gradients;
    `see` may enable them for parameters of its own.

    Args:
        model: a causal language model of transformers.
        tokens: int64 [B, N].
        see: receives q [B, Hq, N, D], k and v [B, Hk, N, D] after RoPE. It may return the layer's attention output
            [B, Hq, N, D]; if it returns None, the output is computed here.

    Raises:
        ModelError: the architecture is not supported.
    """
    with torch.no_grad(), attention_method(model, _ActivationTap(see)), chunked_mlps(model):
        model.model(tokens, use_cache=False)


@contextmanager
def chunked_mlps(model: nn.Module, chunk: int = MLP_CHUNK) -> Iterator[None]:
    """Let every MLP of `model` process `chunk` tokens at a time until the block ends, without gradients.

    This saves memory and changes no number: at 128k tokens each hidden activation of a 14336-wide MLP takes
    3.5 GiB, and four of them exist at a time.
    """
    mlps = [module for module in model.modules() if hasattr(module, "down_proj")]

    def chunked(forward: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        if hidden.shape[1] <= chunk:
            return forward(hidden)
        out = torch.empty_like(hidden)
        for out_chunk, hidden_chunk in zip(out.split(chunk, 1), hidden.split(chunk, 1), strict=True):
            out_chunk.copy_(forward(hidden_chunk))
        return out

    for mlp in mlps:
        mlp.forward = functools.partial(chunked, mlp.forward)
    try:
        yield
    finally:
        for mlp in mlps:
            del mlp.forward  # Without this attribute, the method `forward` of the class is called again.


class _ActivationTap(Method[None]):
    """Dense attention that passes the q, k and v of every layer to a function."""

    name, sparsity = "activation-tap", None

    def __init__(self, see: Callable[[LayerContext, Tensor, Tensor, Tensor], Tensor | None]) -> None:
        self.see = see

    def refuses(self, problem: AttentionProblem) -> None:
        return None

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> None:
        self.layer = layer

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: None) -> Tensor:
        out = self.see(self.layer, q, k, v)
        return masked_attention(q, k, v) if out is None else out


def _store_projection(layer: nn.Module, name: str, _module: nn.Module, _inputs: tuple, output: Tensor) -> None:
    """Store a projection [B, N, H * D] or [B, N, H, D] as [B, H, N, D] in the layer's state: a forward hook."""
    setattr(layer.seerbench, name, output.view(*output.shape[:2], -1, layer.head_dim).transpose(1, 2))


@functools.cache
def _register() -> None:
    """Make our attention known to transformers, once per process."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Compute attention as transformers asks for it.

    Args:
        module: the attention module, whose attribute `seerbench` holds the method.
        query: [B, Hq, Nq, D] after RoPE.
        key: [B, Hk, Nk, D] after RoPE; `value` has the same shape and no RoPE.
        attention_mask: None for a causal prefill, or bool [B, 1, Nq, Nk] for padding and sliding windows.
        scaling: factor of the scores, which must be 1 / sqrt(D).

    Returns:
        The output [B, Nq, Hq, D], and None for the attention weights.

    Raises:
        Refused: another scaling, a method that cannot run this problem, or one that cannot take a mask.
    """
    state: _LayerState = module.seerbench
    if scaling is not None and abs(scaling - query.shape[-1] ** -0.5) > 1e-9:
        raise Refused(f"the model scales scores by {scaling}, SeerBench's kernels by 1/sqrt(head_dim)")
    if query.shape[2] != key.shape[2]:  # Decoding has fewer queries than keys and is dense.
        out = nn.functional.scaled_dot_product_attention(
            query,
            repeat_kv(key, query.shape[1]),
            repeat_kv(value, query.shape[1]),
            attn_mask=attention_mask,
        )
        return out.transpose(1, 2).contiguous(), None
    # RoPE's float32 tables turn q and k into float32 under autocast, while v keeps autocast's dtype.
    query, key = query.to(value.dtype), key.to(value.dtype)
    with state.part("plan"):
        layer = LayerContext(module.layer_idx, state.q_unrotated, state.k_unrotated, state.rope)
        # The state drops q and k, which would otherwise outlive the layer and take 1.25 GiB per layer at 128k
        # tokens with 32 query and 8 key heads of dimension 128.
        state.q_unrotated = state.k_unrotated = None
        plan = state.method.plan(query, key, layer)
    with state.part("attend"):
        if attention_mask is None:
            _check_once(state, query, key, plan)
            out = state.method.attend(query, key, value, plan)
        elif state.method.corrects_skipped:
            raise Refused(
                f"{state.method.name} computes more than attention over its blocks and takes no padding mask"
            )
        elif plan is None or isinstance(plan, BlockMask):
            out = masked_attention(query, key, value, plan, attention_mask)
        else:
            raise Refused(f"{state.method.name} has a plan of its own and cannot honour a padding mask")
        out = out.transpose(1, 2).contiguous()
    if state.record is not None:
        state.record.sparsity.append(realised_sparsity(plan))
        state.record.planned |= plan is not None
    return out, None


def _check_once(state: _LayerState, q: Tensor, k: Tensor, plan: Any) -> None:
    """Raise Refused if the method cannot run q and k under this plan; ask it once per shape."""
    if isinstance(plan, BlockMask):
        block_q, block_k = plan.block_q, plan.block_k
    else:
        block_k = state.method.block or 64
        block_q = state.method.block_q or block_k
    dtype = str(q.dtype).removeprefix("torch.")
    problem = AttentionProblem(
        q.device.type, dtype, q.shape[0], q.shape[1], k.shape[1], q.shape[3], q.shape[2], block_q, block_k
    )
    if problem not in state.accepted:
        reason = state.method.refuses(problem)
        if reason:
            raise Refused(reason)
        state.accepted.add(problem)
