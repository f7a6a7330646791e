"""Models: load one, put a method into it, look at its q, k and v.

A method enters a Hugging Face model through transformers' attention interface, together with the
mask interface: registering the first alone makes the model drop padding masks without a word. The
gate needs q and k before RoPE, which that interface does not hand over; forward hooks on the
projections (on the q/k norms where a model has them) do. Llama, Mistral and Qwen architectures.

Prefill goes through the method; decoding (fewer queries than keys) is dense, as in the paper.
Batches with padding, or a sliding window, run the method's mask in its exact masked form (same
numbers, nothing skipped): accuracy may be measured so, time never is.
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

NAME = "seerbench"  # how transformers knows our attention function
MLP_CHUNK = 16384  # tokens an MLP works on at a time in a long prefill: large enough for any GPU's matrix units


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """The attention modules in order; ModelError for an architecture whose q and k we cannot see."""
    found = [module for module in model.modules() if hasattr(module, "layer_idx") and hasattr(module, "q_proj")]
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no attention layers with q_proj and k_proj; "
            "SeerBench knows the Llama, Mistral and Qwen architectures"
        )
    return sorted(found, key=lambda module: module.layer_idx)


@dataclass
class Record:
    """What happened in the layers while a method was in the model."""

    sparsity: list[float] = field(default_factory=list)  # realised, one entry a layer and forward
    planned: bool = False  # whether any layer had a plan; none has one in a dense method

    def mean_sparsity(self) -> float:
        """Realised sparsity averaged over layers and forwards."""
        return sum(self.sparsity) / len(self.sparsity) if self.sparsity else 0.0


@dataclass
class _Seat:
    """What an attention module needs to know while a method sits in it."""

    method: Method
    rope: Rope
    record: Record | None
    part: Callable[[str], AbstractContextManager]
    accepted: set[AttentionProblem]
    q_unrotated: Tensor | None = None
    k_unrotated: Tensor | None = None


@contextmanager
def attention_method(
    model: Any,
    method: Method,
    count: bool = True,
    part: Callable[[str], AbstractContextManager] = nullcontext,
) -> Iterator[Record]:
    """Put `method` into every attention layer of `model` for the length of the block.

    Yields the Record that its forwards fill. Without `count` it stays empty: counting waits for a GPU once a
    layer, which a timed forward must not. part: what is entered around each layer's "plan" and "attend", such as
    timing.Parts.part. Raises Refused from the forward that the method cannot run.
    """
    _register()
    record, rope, accepted, hooks = Record(), rope_of(model), set(), []
    layers = attention_layers(model)
    before = model.config._attn_implementation
    for layer in layers:
        layer.seerbench = _Seat(method, rope, record if count else None, part, accepted)
        for name in ("q", "k"):
            source = getattr(layer, f"{name}_norm", None) or getattr(layer, f"{name}_proj")
            hooks.append(source.register_forward_hook(functools.partial(_keep, layer, f"{name}_unrotated")))
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
    """Run a dense forward of tokens [B, N] and show each layer's q, k, v to `see`, layer by layer.

    `see` may return the layer's attention [B, Hq, N, D] if it has computed it; else it is computed here. Nothing
    is kept, so a model of any depth streams through. The forward runs without gradients; `see` may switch them
    on for parameters of its own.
    """
    with torch.no_grad(), attention_method(model, _Visitor(see)), chunked_mlps(model):
        model.model(tokens, use_cache=False)


@contextmanager
def chunked_mlps(model: nn.Module, chunk: int = MLP_CHUNK) -> Iterator[None]:
    """Let every MLP of `model` work on `chunk` tokens at a time for the length of the block (no gradients).

    The same numbers with less memory: at 128k tokens the hidden activations of one 14336-wide MLP take 3.5 GiB
    each, and four exist at a time.
    """
    mlps = [module for module in model.modules() if hasattr(module, "down_proj")]

    def chunked(whole: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        if hidden.shape[1] <= chunk:
            return whole(hidden)
        out = torch.empty_like(hidden)
        for into, part in zip(out.split(chunk, 1), hidden.split(chunk, 1), strict=True):
            into.copy_(whole(part))
        return out

    for mlp in mlps:
        mlp.forward = functools.partial(chunked, mlp.forward)
    try:
        yield
    finally:
        for mlp in mlps:
            del mlp.forward  # the class's own is behind it


class _Visitor:
    """Dense attention that shows what it gets."""

    name, sparsity = "visitor", None

    def __init__(self, see: Callable[[LayerContext, Tensor, Tensor, Tensor], Tensor | None]) -> None:
        self.see = see

    def refuses(self, case: AttentionProblem) -> None:
        return None

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> None:
        self.layer = layer

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: None) -> Tensor:
        out = self.see(self.layer, q, k, v)
        return masked_attention(q, k, v) if out is None else out


def _keep(layer: nn.Module, name: str, _module: nn.Module, _inputs: tuple, output: Tensor) -> None:
    """Forward hook: [B, N, H * D] or [B, N, H, D] -> [B, H, N, D] on the layer's seat."""
    setattr(layer.seerbench, name, output.view(*output.shape[:2], -1, layer.head_dim).transpose(1, 2))


@functools.cache
def _register() -> None:
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
    """transformers' attention function: query [B, Hq, Nq, D], key and value [B, Hk, Nk, D] -> [B, Nq, Hq, D]."""
    seat: _Seat = module.seerbench
    if scaling is not None and abs(scaling - query.shape[-1] ** -0.5) > 1e-9:
        raise Refused(f"the model scales scores by {scaling}, SeerBench's kernels by 1/sqrt(head_dim)")
    if query.shape[2] != key.shape[2]:  # decoding
        out = nn.functional.scaled_dot_product_attention(
            query,
            repeat_kv(key, query.shape[1]),
            repeat_kv(value, query.shape[1]),
            attn_mask=attention_mask,
        )
        return out.transpose(1, 2).contiguous(), None
    # RoPE's fp32 tables lift q and k out of autocast's dtype; v stays in it.
    query, key = query.to(value.dtype), key.to(value.dtype)
    with seat.part("plan"):
        layer = LayerContext(module.layer_idx, seat.q_unrotated, seat.k_unrotated, seat.rope)
        # Held here they would outlive the layer: 1.25 GiB a layer at 128k with 32/8 heads of 128.
        seat.q_unrotated = seat.k_unrotated = None
        plan = seat.method.plan(query, key, layer)
    with seat.part("attend"):
        if attention_mask is None:
            _accept(seat, query, key, plan)
            out = seat.method.attend(query, key, value, plan)
        elif hasattr(seat.method, "exact"):
            raise Refused(
                f"{seat.method.name} computes more than attention over its blocks and takes no padding mask"
            )
        elif plan is None or isinstance(plan, BlockMask):
            out = masked_attention(query, key, value, plan, attention_mask)
        else:
            raise Refused(f"{seat.method.name} has a plan of its own and cannot honour a padding mask")
        out = out.transpose(1, 2).contiguous()
    if seat.record is not None:
        seat.record.sparsity.append(realised_sparsity(plan))
        seat.record.planned |= plan is not None
    return out, None


def _accept(seat: _Seat, q: Tensor, k: Tensor, plan: Any) -> None:
    """Ask the method once a shape whether it can run it."""
    mask = getattr(plan, "mask", plan)  # a mask laid out for another kernel holds the mask
    block_q, block_k = (mask.block_q, mask.block_k) if isinstance(mask, BlockMask) else (64, 64)
    dtype = str(q.dtype).removeprefix("torch.")
    case = AttentionProblem(
        q.device.type, dtype, q.shape[0], q.shape[1], k.shape[1], q.shape[3], q.shape[2], block_q, block_k
    )
    if case not in seat.accepted:
        reason = seat.method.refuses(case)
        if reason:
            raise Refused(reason)
        seat.accepted.add(case)
