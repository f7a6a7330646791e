"""Put a method into a Hugging Face model, or show a function the q, k and v of every layer.

    attention_method   a context in which all attention layers of a model use a method
    generate           a text continued with a sparse prefill and sparse decoding
    for_each_layer     a dense forward pass that calls a function once per layer
    chunked_mlps       a context in which long prompts need less memory

This file is between methods and whatever runs a model: training, offline searches and measurements.

A method enters through transformers' attention interface and through its mask interface, since a model drops
padding masks without a warning if only the first is registered (attention_function.py). The gate needs q and k
before RoPE, which the attention interface does not pass: forward hooks store both. A model is checked when it is
used first (self_check.py); architectures.py lists what is supported.

What a layer call is follows from how many tokens the layer's cache holds, whatever kind the cache is:

    none               prefill: the method runs
    some, 1 new one    decoding: dense attention, as in the paper, or a method for decoding
    some, more new     a later chunk, a second turn or drafted tokens: refused

Batches with padding and packed documents are planned sequence by sequence, and run in masked form, which gives the
same numbers and skips nothing (attention_masks.py). Accuracy may be measured in that form, time may not. Under any
other mask, such as that of a sliding window shorter than the prompt, attention is dense or refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.errors import Refused
from seerbench.kernels.flex_attention import masked_attention
from seerbench.methods.decode_protocol import DecodeMethod
from seerbench.methods.protocol import Method
from seerbench.models.architectures import attention_layers
from seerbench.models.attention_function import Record, method_in_layers
from seerbench.models.self_check import check_model

# Tokens that an MLP processes at a time in a long prefill. This many keep the matrix units of any GPU busy.
MLP_CHUNK = 16384


@contextmanager
def attention_method(
    model: Any,
    method: Method,
    count: bool = True,
    part: Callable[[str], AbstractContextManager] = nullcontext,
    decode: DecodeMethod | None = None,
) -> Iterator[Record]:
    """Put `method` into every attention layer of `model` until the block ends.

    Args:
        model: a causal language model of transformers. One that torch.compile made runs its attention uncompiled.
        method: used for the prefill of every layer.
        count: whether to record the realised sparsity. Counting waits for the GPU once per layer, so timed forward
            passes do without.
        part: makes the context that is entered around each layer's "plan" and "attend", for timing them.
        decode: a method for decoding; without one, decoding is dense. It needs one sequence per row of a batch,
            with padding on the left only, and a cache that nobody else changes.

    Yields:
        The Record that forward passes fill; it stays empty without `count`.

    Raises:
        ModelError: the model is not supported, has a method already, or shares its config with a model that has.
            From a forward pass: another thread runs it, it is a copy, or its attention implementation was changed.
        Refused: the method's gates, plan or patterns are for a model of another depth. From a forward pass that the
            method cannot run. From the end of the block, if layers ran in re-entrant checkpoints and their backward
            pass would come after the block, without the method.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    check_model(model)
    layers = len(attention_layers(model))
    if method.model_layers not in (None, layers):
        raise Refused(
            f"{method.name} has gates, a plan or patterns for a model of {method.model_layers} layers; "
            f"{type(model).__name__} has {layers}"
        )
    if decode is not None and decode.model_layers not in (None, layers):
        raise Refused(
            f"{decode.name} has gates for a model of {decode.model_layers} layers; {type(model).__name__} has "
            f"{layers}"
        )
    with method_in_layers(model, method, count, part, decode) as record:
        yield record


def generate(
    model: Any, tokens: Tensor, prefill: Method, decode: DecodeMethod | None = None, **options: Any
) -> tuple[Tensor, Record]:
    """Continue texts by the model's own `generate`, with one method for the prompt and one for the new tokens.

    Args:
        model: a causal language model of transformers.
        tokens: the prompts, int64 [B, N].
        prefill: the method of the prompt.
        decode: the method of each new token; without one, decoding is dense.
        options: of the model's `generate`, such as max_new_tokens, or attention_mask for prompts of several
            lengths, which are padded on the left.

    Returns:
        The prompts with their continuations as `generate` returns them, and the Record of realised sparsities.

    Raises:
        ModelError, Refused: as from `attention_method`. With a method for decoding, beam search and generation
            without a cache are refused.
    """
    if decode is not None and options.get("use_cache") is False:
        raise Refused("without a cache every new token is a prefill, and nothing is decoded; leave use_cache on")
    # With a static cache on a GPU, transformers would compile the model, whose attention runs uncompiled.
    options = {"disable_compile": True, **options}
    with torch.no_grad(), attention_method(model, prefill, decode=decode) as record:
        return model.generate(tokens, **options), record


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
        ModelError: the model is not supported.
        Refused: the tokens do not fit into the sliding window of a layer.
    """
    with torch.no_grad(), attention_method(model, _ActivationTap(see)), chunked_mlps(model):
        model.model(tokens, use_cache=False)


@contextmanager
def chunked_mlps(model: nn.Module, chunk: int = MLP_CHUNK) -> Iterator[None]:
    """Let every MLP of `model` process `chunk` tokens at a time until the block ends, without gradients.

    This saves memory and changes no number: at 128k tokens each hidden activation of a 14336-wide MLP takes
    3.5 GiB, and four of them exist at a time. Mixtures of experts run as they are; their shared experts are MLPs.
    """
    # The experts of a mixture have their projections in one parameter each.
    mlps = [module for module in model.modules() if isinstance(getattr(module, "down_proj", None), nn.Module)]

    def chunked(forward: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:  # [..., N, H]
        if hidden.shape[-2] <= chunk:
            return forward(hidden)
        out = torch.empty_like(hidden)
        for out_chunk, hidden_chunk in zip(out.split(chunk, -2), hidden.split(chunk, -2), strict=True):
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
    corrects_skipped = True  # `attend` does more than attention, so masked attention cannot replace it

    def __init__(self, see: Callable[[LayerContext, Tensor, Tensor, Tensor], Tensor | None]) -> None:
        self.see = see

    def refuses(self, problem: AttentionProblem) -> None:
        return None

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> None:
        self.layer = layer

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: None) -> Tensor:
        out = self.see(self.layer, q, k, v)
        return masked_attention(q, k, v) if out is None else out
