"""Compute the attention of a Hugging Face model's layers by a method: the function that transformers calls.

`method_in_layers` registers it under a name, keeps one state per layer while a method is in the model, and puts
hooks on the layers. The hooks see what the attention function is not given: how many tokens the layer's cache holds
already, which tells prefill, decoding and later chunks apart, and q and k before RoPE.

A method for decoding keeps something of what each layer's cache holds, such as compressed keys. The tensor of keys
in the cache is remembered after each call: if it is another one at the next call, somebody has reordered, cropped
or exchanged the cache, and what the method keeps is not of its tokens.

hugging_face.py checks a model (self_check.py) before it calls `method_in_layers`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem, LayerContext, Rope
from seerbench.errors import ModelError, Refused
from seerbench.kernels.decode.dense import dense_decode_attention
from seerbench.kernels.flex_attention import masked_attention
from seerbench.methods.decode_protocol import CacheState, DecodeMethod, NewToken
from seerbench.methods.protocol import Method, realised_sparsity
from seerbench.models.architectures import attention_layers, rope_of
from seerbench.models.attention_masks import first_tokens, planned_pairs, require_all_visible, visible_pairs

NAME = "seerbench"  # the name under which our attention function is registered with transformers
# Arguments of transformers' attention function that change no number: the mask has the window, q and k have the
# positions, and the others are for the rest of the model.
WITHOUT_EFFECT = {
    "sliding_window",
    "position_ids",
    "cache_position",
    "use_cache",
    "return_dict",
    "num_items_in_batch",
    "output_hidden_states",
    "output_router_logits",
}
# Arguments that are honoured at one value.
AT_ONE_VALUE = {"dropout": 0.0, "is_causal": True, "output_attentions": False}


@dataclass
class Record:
    """What the layers did while a method was in the model. Every layer call is counted, or was refused."""

    sparsity: list[float] = field(default_factory=list)  # realised, one entry per layer and prefill
    decoded: int = 0  # layer calls with one new token
    # The share of blocks read, one per layer call of sparse decoding. They stay on a GPU until somebody asks, since
    # decoding would wait for each of them.
    decode_density: list[Tensor] = field(default_factory=list)
    planned: bool = False  # whether any layer had a plan; a dense method has none

    def mean_sparsity(self) -> float:
        """Return the realised sparsity, averaged over layers and prefills; 0 if nothing was recorded."""
        return sum(self.sparsity) / len(self.sparsity) if self.sparsity else 0.0

    def mean_decode_sparsity(self) -> float:
        """Return the share of blocks that decoding skipped, averaged over layers and steps; 0 if it was dense."""
        return 1.0 - float(torch.stack(self.decode_density).mean()) if self.decode_density else 0.0


@dataclass
class _Shared:
    """What the layers share while a method is in the model."""

    method: Method
    rope: Rope
    record: Record | None
    part: Callable[[str], AbstractContextManager]
    decode: DecodeMethod | None
    accepted: set[AttentionProblem] = field(default_factory=set)  # the problems that the method does not refuse
    thread: int = field(default_factory=threading.get_ident)
    with_gradients: bool = False  # whether the model's forward pass began with gradients
    to_recompute: int = 0  # layer calls in re-entrant checkpoints whose backward pass has not come yet
    checked: tuple[Tensor | None, int] | None = None  # mask and place of a decoding step, the same for all layers


@dataclass
class LayerState:
    """State of one layer while a method is in the model."""

    shared: _Shared
    seen: int = 0  # tokens in the layer's cache before this call
    attended: bool = False  # whether this call of the layer has reached the attention function
    q_unrotated: Tensor | None = None  # [B, Hq, N, D], from the projection until the layer's plan is made
    k_unrotated: Tensor | None = None  # [B, Hk, N, D]
    cache: Any = None  # the model's cache during a call, for sparse decoding
    cached_keys: ReferenceType[Tensor] | None = None  # the cache's keys after the last call, for sparse decoding
    kept: CacheState | None = None  # what the method for decoding keeps of the tokens in the cache


# By attention module, and by decoder for its `shared`. Not attributes, which a copy of a model would have too.
_STATES: WeakKeyDictionary[nn.Module, LayerState] = WeakKeyDictionary()
_ENTRY = threading.Lock()
# torch.compile runs these functions as they are: what they do depends on state that it does not see.
_uncompiled = functools.partial(
    torch.compiler.disable, reason="SeerBench's methods run uncompiled; compile the model without fullgraph=True"
)


@contextmanager
def method_in_layers(
    model: Any,
    method: Method,
    count: bool = True,
    part: Callable[[str], AbstractContextManager] = nullcontext,
    decode: DecodeMethod | None = None,
) -> Iterator[Record]:
    """Put `method` into every attention layer of a model that has been checked (`hugging_face.attention_method`).

    The arguments, the result and the errors of forward passes are those of `attention_method`.
    """
    _register()
    layers, record = attention_layers(model), Record()
    shared = _Shared(method, rope_of(model), record if count else None, part, decode)
    with ExitStack() as stack:
        with _ENTRY:
            before = _own_implementation(model, layers)
            stack.callback(model.set_attn_implementation, before)
            model.set_attn_implementation(NAME)
        for module in (model.model, *layers):
            _STATES[module] = LayerState(shared)
            stack.callback(_STATES.pop, module)
        stack.enter_context(_hook(model.model.register_forward_pre_hook(_before_model)))
        for layer in layers:
            stack.enter_context(_hook(layer.register_forward_pre_hook(_before_layer, with_kwargs=True)))
            stack.enter_context(_hook(layer.register_forward_hook(_after_layer)))
            for name in ("q", "k"):
                projection = getattr(layer, f"{name}_norm", None) or getattr(layer, f"{name}_proj")
                store = functools.partial(_store_projection, layer, f"{name}_unrotated")
                stack.enter_context(_hook(projection.register_forward_hook(store)))
        yield record
    if shared.to_recompute:
        raise Refused(
            f"{shared.to_recompute} layer calls ran in re-entrant checkpoints, and would be computed again without "
            "the method by a backward pass after the block; call backward inside the block, or enable gradient "
            "checkpointing with use_reentrant=False, or run without gradients"
        )


def layer_state(layer: nn.Module) -> LayerState:
    """Return the state of an attention module.

    Raises:
        ModelError: no method is in the module, although its config has our attention function.
    """
    state = _STATES.get(layer)
    if state is None:
        raise ModelError(
            "this model has SeerBench's attention function but no method: it is a copy of a model that a method was"
            " in, or shares its config with one. Copy a model outside of `attention_method`, and give each model a "
            "config of its own"
        )
    return state


def kept_states(model: Any) -> list[CacheState]:
    """Return what the method for decoding in a model keeps of each layer's cache, after a prefill."""
    kept = [layer_state(layer).kept for layer in attention_layers(model)]
    assert all(state is not None for state in kept)  # a prefill with a cache and a method for decoding
    return kept  # type: ignore[return-value]


def continue_from(model: Any, cache: Any, states: Sequence[CacheState]) -> None:
    """Let the method for decoding in a model go on from a cache that was filled elsewhere.

    Args:
        model: a causal language model of transformers, with a method for decoding in it.
        cache: the cache that the next forward pass is given.
        states: what the method keeps of each layer of this cache.
    """
    for layer, kept in zip(attention_layers(model), states, strict=True):
        state = layer_state(layer)
        state.kept, state.cached_keys = kept, ref(cache.layers[layer.layer_idx].keys)


def _own_implementation(model: Any, layers: list[nn.Module]) -> str:
    """Return the attention implementation that a model has before a method enters; raise ModelError inside one."""
    if any(layer in _STATES for layer in layers):
        raise ModelError("a method is in this model already; leave its block before another one enters")
    if model.config._attn_implementation == NAME:
        raise ModelError(
            "this model shares its config with a model that a method is in, or is a copy of such a model. Copy a "
            "model outside of `attention_method`, and give each model a config of its own"
        )
    return model.config._attn_implementation


@contextmanager
def _hook(handle: Any) -> Iterator[None]:
    """Remove a hook when the block ends."""
    try:
        yield
    finally:
        handle.remove()


@functools.cache
def _register() -> None:
    """Make our attention known to transformers, once per process."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def _in_backward() -> bool:
    """Return whether autograd is running a backward pass in this thread, which may compute layers again."""
    return torch._C._current_graph_task_id() != -1


@_uncompiled
def _before_model(decoder: nn.Module, _inputs: tuple) -> None:
    """Note whether a forward pass has gradients: a hook."""
    layer_state(decoder).shared.with_gradients = torch.is_grad_enabled()


@_uncompiled
def _before_layer(layer: nn.Module, _inputs: tuple, options: dict[str, Any]) -> None:
    """Note what the cache of an attention module holds before this call: a hook.

    Raises:
        ModelError: another thread runs the model, or there is no method in it (`layer_state`).
    """
    state = layer_state(layer)
    if threading.get_ident() != state.shared.thread and not _in_backward():
        raise ModelError("another thread has put a method into this model; give each thread a model of its own")
    cache = options.get("cache", options.get("past_key_values"))  # transformers has renamed it
    state.seen = 0 if cache is None else int(cache.get_seq_length(layer.layer_idx))
    state.attended = False
    if state.shared.decode is not None:
        _before_sparse_decoding(layer, state, cache)


def _before_sparse_decoding(layer: nn.Module, state: LayerState, cache: Any) -> None:
    """Keep the cache for the time of the call; raise Refused if it is not what the last call left behind."""
    state.cache = cache
    if state.seen == 0:
        state.kept = state.cached_keys = None
    elif state.cached_keys is None or cache.layers[layer.layer_idx].keys is not state.cached_keys():
        raise Refused(
            f"the cache of layer {layer.layer_idx} is not the one that the last call left behind: it was filled "
            "outside of the block, or has been reordered (beam search), cropped, moved or exchanged since. Sparse "
            "decoding needs a prefill and then one token at a time, with one cache"
        )


@_uncompiled
def _after_layer(layer: nn.Module, _inputs: tuple, _output: Any) -> None:
    """Remember the cache's keys; raise ModelError if a module did not call our attention function: a hook."""
    state = layer_state(layer)
    if not state.attended:
        raise ModelError(
            f"layer {layer.layer_idx} did not call the method that is in the model; do not change the attention "
            "implementation inside the block"
        )
    if state.cache is not None:
        state.cached_keys, state.cache = ref(state.cache.layers[layer.layer_idx].keys), None


@_uncompiled
def _store_projection(layer: nn.Module, name: str, _module: nn.Module, _inputs: tuple, output: Tensor) -> None:
    """Store a projection [B, N, H * D] or [B, N, H, D] as [B, H, N, D] in the layer's state: a hook."""
    setattr(layer_state(layer), name, output.view(*output.shape[:2], -1, layer.head_dim).transpose(1, 2))


@_uncompiled
def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute attention as transformers asks for it.

    Args:
        module: the attention module, which has a `LayerState`.
        query: [B, Hq, Nq, D] after RoPE.
        key: [B, Hk, Nk, D] after RoPE; `value` has the same shape and no RoPE. A static cache has room behind the
            keys of a prefill.
        attention_mask: None for causal attention, or what transformers made of the masks that the model was given.
        scaling: factor of the scores, which must be 1 / sqrt(D).
        options: other arguments, which must have no effect here.

    Returns:
        The output [B, Nq, Hq, D], and None for the attention weights.

    Raises:
        Refused: attention of another form, several new tokens after a prompt, a mask that cannot be honoured, or a
            problem that the method cannot run.
    """
    state = layer_state(module)
    state.attended = True
    _require_plain_attention(query, scaling, options)
    # RoPE's float32 tables turn q and k into float32 under autocast, while v keeps autocast's dtype.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if state.seen == 0:
        out = _prefill(module, state, query, key, value, attention_mask)
    elif query.shape[2] == 1:
        sparse = state.shared.decode is not None
        out = (_decode_sparsely if sparse else _decode)(state, query, key, value, attention_mask)
    else:
        raise Refused(
            f"chunked prefill is not supported yet: {query.shape[2]} new tokens after {state.seen} that the cache "
            "holds (a chunk, a second turn, or drafted tokens). Give the entire prompt in one forward pass"
        )
    return out.transpose(1, 2).contiguous(), None


def _require_plain_attention(query: Tensor, scaling: float | None, options: dict[str, Any]) -> None:
    """Raise Refused unless a layer asks for softmax(q k' / sqrt(D)) v and nothing else."""
    if scaling is not None and abs(scaling - query.shape[-1] ** -0.5) > 1e-9:
        raise Refused(f"the model scales scores by {scaling}, SeerBench's kernels by 1/sqrt(head_dim)")
    for name, value in options.items():
        if value is None or name in WITHOUT_EFFECT or (name in AT_ONE_VALUE and value == AT_ONE_VALUE[name]):
            continue
        raise Refused(
            f"the model asks for attention with {name}{f'={value}' if name in AT_ONE_VALUE else ''}, which "
            "SeerBench's kernels do not compute"
        )


def _prefill(
    module: nn.Module, state: LayerState, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None
) -> Tensor:
    """Return the method's attention over a prompt, [B, Hq, N, D]; the arguments are those of `_attention`."""
    shared, tokens = state.shared, q.shape[2]
    if k.shape[2] != tokens:  # a static cache, which has the prompt's keys first
        k, v = k[:, :, :tokens].contiguous(), v[:, :, :tokens].contiguous()
    visible = visible_pairs(attention_mask, tokens)
    layer = LayerContext(module.layer_idx, state.q_unrotated, state.k_unrotated, shared.rope)
    if shared.decode is not None and state.cache is not None:
        state.kept = shared.decode.start(layer, k, first_tokens(visible, len(q), tokens))
    with shared.part("plan"):
        # The state drops q and k, which would otherwise outlive the layer and take 1.25 GiB per layer at 128k
        # tokens with 32 query and 8 key heads of dimension 128.
        state.q_unrotated = state.k_unrotated = None
        if visible is None:
            plan = shared.method.plan(q, k, layer)
        else:
            pairs, sparsity = planned_pairs(shared.method, q, k, layer, visible)
    with shared.part("attend"):
        if visible is None:
            _check_once(shared, q, k, plan)
            out = shared.method.attend(q, k, v, plan)
            _require_backward(shared.method, q, k, v, out)
        else:
            out = masked_attention(q, k, v, None, pairs)
    if shared.record is not None:
        if visible is None:
            sparsity = None if plan is None else realised_sparsity(plan)
        shared.record.sparsity.append(sparsity or 0.0)
        shared.record.planned |= sparsity is not None
    if _in_backward():
        shared.to_recompute = max(0, shared.to_recompute - 1)
    elif shared.with_gradients and not torch.is_grad_enabled():
        shared.to_recompute += 1
    return out


def _decode(state: LayerState, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return dense attention of one new token over the cache, [B, Hq, 1, D], as in the paper."""
    state.q_unrotated = state.k_unrotated = None
    if attention_mask is None:  # every token is visible; a static cache has room behind them
        k, v = k[:, :, : state.seen + 1], v[:, :, : state.seen + 1]
    if state.shared.record is not None:
        state.shared.record.decoded += 1
    return dense_decode_attention(q, k, v, attention_mask)


def _decode_sparsely(state: LayerState, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return attention of one new token over the blocks of the cache that the method chooses, [B, Hq, 1, D]."""
    shared, kept = state.shared, state.kept
    q_unrotated, k_unrotated = state.q_unrotated, state.k_unrotated
    state.q_unrotated = state.k_unrotated = None
    # The hooks have set these.
    assert shared.decode is not None
    assert kept is not None
    assert q_unrotated is not None
    assert k_unrotated is not None
    if k.shape[2] <= state.seen:
        raise Refused("sparse decoding takes no sliding window that is shorter than the text")
    if shared.checked is None or shared.checked[0] is not attention_mask or shared.checked[1] != state.seen:
        require_all_visible(attention_mask, kept.first, state.seen + 1)
        shared.checked = attention_mask, state.seen
    with shared.part("plan"):
        token = NewToken(q, k, q_unrotated, k_unrotated)
        shared.decode.append(token, kept)
        plan = shared.decode.plan(token, kept)
    with shared.part("attend"):
        out = shared.decode.attend(q, k, v, plan)
    if shared.record is not None:
        shared.record.decoded += 1
        shared.record.decode_density.append(plan.density())
    return out


def _check_once(shared: _Shared, q: Tensor, k: Tensor, plan: Any) -> None:
    """Raise Refused if the method cannot run q and k under this plan; ask it once per shape."""
    if isinstance(plan, BlockMask):
        block_q, block_k = plan.block_q, plan.block_k
    else:
        block_k = shared.method.block or 64
        block_q = shared.method.block_q or block_k
    problem = AttentionProblem.of(q, k, block_q, block_k)
    if problem not in shared.accepted:
        reason = shared.method.refuses(problem)
        if reason:
            raise Refused(reason)
        shared.accepted.add(problem)


def _require_backward(method: Method, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """Raise Refused if gradients are asked for and the method's kernel gave an output without a backward pass."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)) and not out.requires_grad:
        raise Refused(
            f"the kernel of {method.name} has no backward pass; run the model under torch.no_grad(), or without "
            "parameters that require gradients"
        )
