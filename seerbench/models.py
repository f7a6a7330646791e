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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.masking_utils import sdpa_mask

from seerbench.attention import BlockMask, Case, Layer, Method, Rope, realised_sparsity, repeat_kv
from seerbench.kernels.flex_attention import masked_attention

NAME = "seerbench"  # how transformers knows our attention function
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Refused(RuntimeError):
    """A method cannot run what it was given; the text is its reason and becomes a row."""


class ModelError(ValueError):
    """A model that cannot be loaded or that methods cannot enter; the text says what to do."""


def load(source: str | Path, device: str = "cpu", dtype: str = "float32", revision: str | None = None) -> Any:
    """A causal language model from a folder or a hub id, in evaluation mode, its attention dense.

    A folder is used as it is; a hub id honours HF_HUB_OFFLINE. ModelError says what is missing.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source, revision=revision, dtype=DTYPES[dtype], attn_implementation="sdpa"
        )
    except OSError as error:
        raise ModelError(
            f"no model at {source}: {str(error).splitlines()[0]} Give a local folder in the config, or fetch "
            f"it with: hf download {source}"
        ) from None
    return model.to(device).eval()


def load_tokenizer(source: str | Path, revision: str | None = None) -> Any:
    """The tokenizer beside a model, or in a folder of its own."""
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision)
    except OSError as error:
        raise ModelError(f"no tokenizer at {source}: {str(error).splitlines()[0]}") from None


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """The attention modules in order; ModelError for an architecture whose q and k we cannot see."""
    found = [module for module in model.modules() if hasattr(module, "layer_idx") and hasattr(module, "q_proj")]
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no attention layers with q_proj and k_proj; "
            "SeerBench knows the Llama, Mistral and Qwen architectures"
        )
    return sorted(found, key=lambda module: module.layer_idx)


def rope_of(model: Any) -> Rope:
    """The backbone's own rotary embedding at any positions, its scaling included: [n] -> cos, sin [n, D]."""
    rotary, device = model.model.rotary_emb, next(model.parameters()).device

    def rope(positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = rotary(torch.zeros(1, device=device), positions[None].to(device))
        return cos[0], sin[0]

    return rope


@dataclass
class Record:
    """What happened in the layers while a method was in the model."""

    plans: list[Any] = field(default_factory=list)  # one entry a layer and forward

    @property
    def sparsity(self) -> list[float]:
        """Realised sparsity of each plan; counted here and not in the forward, which may be timed."""
        return [realised_sparsity(plan) for plan in self.plans]

    def mean_sparsity(self) -> float:
        """Realised sparsity averaged over layers and forwards."""
        return sum(self.sparsity) / len(self.plans) if self.plans else 0.0


@dataclass
class _Seat:
    """What an attention module needs to know while a method sits in it."""

    method: Method
    rope: Rope
    record: Record | None
    accepted: set[Case]
    q_unrotated: Tensor | None = None
    k_unrotated: Tensor | None = None


@contextmanager
def using(model: Any, method: Method, keep_plans: bool = True) -> Iterator[Record]:
    """Put `method` into every attention layer of `model` for the length of the block.

    Yields the Record that its forwards fill; without `keep_plans` it stays empty, as a forward whose
    memory or time is measured must free its plans as it goes. Raises Refused from the forward that the method
    cannot run.
    """
    _register()
    record, rope, accepted, hooks = Record(), rope_of(model), set(), []
    layers = attention_layers(model)
    before = model.config._attn_implementation
    for layer in layers:
        layer.seerbench = _Seat(method, rope, record if keep_plans else None, accepted)
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


def visit(model: Any, tokens: Tensor, see: Callable[[Layer, Tensor, Tensor, Tensor], None]) -> None:
    """Run a dense forward of tokens [B, N] and show each layer's q, k, v to `see`, layer by layer.

    Nothing is kept, so a model of any depth streams through. The forward runs without gradients;
    `see` may switch them on for parameters of its own.
    """
    with torch.no_grad(), using(model, _Visitor(see)):
        model.model(tokens, use_cache=False)


class _Visitor:
    """Dense attention that shows what it gets."""

    name, sparsity = "visitor", None

    def __init__(self, see: Callable[[Layer, Tensor, Tensor, Tensor], None]) -> None:
        self.see = see

    def refuses(self, case: Case) -> None:
        return None

    def plan(self, q: Tensor, k: Tensor, layer: Layer) -> None:
        self.layer = layer

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: None) -> Tensor:
        self.see(self.layer, q, k, v)
        return masked_attention(q, k, v)


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
    layer = Layer(module.layer_idx, seat.q_unrotated, seat.k_unrotated, seat.rope)
    plan = seat.method.plan(query, key, layer)
    if attention_mask is None:
        _accept(seat, query, key, plan)
        out = seat.method.attend(query, key, value, plan)
    elif hasattr(seat.method, "exact"):
        raise Refused(f"{seat.method.name} computes more than attention over its blocks and takes no padding mask")
    elif plan is None or isinstance(plan, BlockMask):
        out = masked_attention(query, key, value, plan, attention_mask)
    else:
        raise Refused(f"{seat.method.name} has a plan of its own and cannot honour a padding mask")
    if seat.record is not None:
        seat.record.plans.append(plan)
    return out.transpose(1, 2).contiguous(), None


def _accept(seat: _Seat, q: Tensor, k: Tensor, plan: Any) -> None:
    """Ask the method once a shape whether it can run it."""
    mask = getattr(plan, "mask", plan)  # a mask laid out for another kernel holds the mask
    block_q, block_k = (mask.block_q, mask.block_k) if isinstance(mask, BlockMask) else (64, 64)
    dtype = str(q.dtype).removeprefix("torch.")
    case = Case(q.device.type, dtype, q.shape[0], q.shape[1], k.shape[1], q.shape[3], q.shape[2], block_q, block_k)
    if case not in seat.accepted:
        reason = seat.method.refuses(case)
        if reason:
            raise Refused(reason)
        seat.accepted.add(case)
