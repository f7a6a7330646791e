"""Check once per model that methods inside it compute what the model itself computes.

A forward pass of 64 tokens through the model alone shows what its attention layers and its output embedding
compute. Then every layer runs again, on the same input, with dense attention through our attention function:

    attention   a layer's output must be that of its own attention
    rotation    q and k before RoPE, rotated as gates rotate them, must be the q and k that the layer attends with
    loss        the logits must be the output embedding's of the last hidden state, as `window_nll` computes them

hugging_face.py and likelihood.py call `check_model` before anything is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.core.rope import block_starts, rotate
from seerbench.errors import Refused
from seerbench.kernels.flex_attention import masked_attention
from seerbench.methods.protocol import Method
from seerbench.models.architectures import attention_layers, require_supported, unsupported
from seerbench.models.attention_function import method_in_layers

TOKENS = 64
# The configuration with which each model has passed. A model whose configuration changes is checked again.
_PASSED: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def check_model(model: Any) -> None:
    """Check a model, unless it has passed with its present configuration.

    Weights, mode and random number generators stay as they are.

    Raises:
        ModelError: the model is not supported; the text has the reason and what is supported.
    """
    require_supported(model)
    configuration = repr(model.config.to_dict())
    if _PASSED.get(model) != configuration:
        with torch.no_grad(), _evaluation_mode(model):
            _check(model)
        _PASSED[model] = configuration


def _check(model: Any) -> None:
    """Raise ModelError if the model computes something else than methods inside it, or than `window_nll`."""
    layers = attention_layers(model)
    watched = [model.model, model.lm_head, *layers]
    calls: dict[nn.Module, tuple[tuple, dict[str, Any], Any]] = {}  # inputs, options and output of each module

    def watch(module: nn.Module, inputs: tuple, options: dict[str, Any], output: Any) -> None:
        calls[module] = inputs, options, output

    hooks = [module.register_forward_hook(watch, with_kwargs=True) for module in watched]
    try:
        tokens = torch.arange(TOKENS, device=model.model.embed_tokens.weight.device) % model.config.vocab_size
        logits = model(tokens[None], use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    if not all(module in calls for module in watched):
        raise unsupported(model, "its forward pass leaves out its own attention layers or `lm_head`")
    (head_input, *_), _, head_output = calls[model.lm_head]
    last_hidden = calls[model.model][2].last_hidden_state
    if not (_agree(head_input, last_hidden, 0.0) and _agree(logits, head_output, 0.0)):
        raise unsupported(
            model, "its logits are not the output of `lm_head` on the last hidden state, so losses would be wrong"
        )
    probe = _Probe()
    with method_in_layers(model, probe, count=False):
        for layer in layers:
            inputs, options, (alone, *_) = calls[layer]
            if not isinstance(options.get("attention_mask"), Tensor):  # FlexAttention has masks of its own
                options = {**options, "attention_mask": None}
            try:
                inside = layer(*inputs, **options)[0]
            except Refused as refusal:
                raise unsupported(model, f"layer {layer.layer_idx}: {refusal}") from None
            if not _agree(inside, alone):
                raise unsupported(
                    model, f"in layer {layer.layer_idx} it computes other attention than softmax(q k' / sqrt(D)) v"
                )
            if not probe.rotation_agrees:
                raise unsupported(
                    model,
                    f"layer {layer.layer_idx} does not attend with its q and k rotated by `model.rotary_emb`, as a "
                    "gate would rotate them",
                )


class _Probe(Method[None]):
    """Dense attention that compares q and k after RoPE with those before it, rotated."""

    name, sparsity = "self-check", None

    def refuses(self, problem: AttentionProblem) -> None:
        return None

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> None:
        assert layer.rope is not None
        assert layer.q_unrotated is not None
        assert layer.k_unrotated is not None
        try:
            cos, sin = layer.rope(block_starts(q.shape[2], 1, q.device))
        except Refused:  # Every gate is refused with the same reason, and other methods do not rotate.
            self.rotation_agrees = True
            return
        self.rotation_agrees = all(
            unrotated.shape == rotated.shape
            and cos.shape[-1] == rotated.shape[-1]  # some models rotate a part of each head
            and _agree(rotate(unrotated, cos, sin), rotated)
            for unrotated, rotated in ((layer.q_unrotated, q), (layer.k_unrotated, k))
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: None) -> Tensor:
        return masked_attention(q, k, v)


def _agree(got: Tensor, want: Tensor, tolerance: float | None = None) -> bool:
    """Return whether two tensors agree to a share of the largest entry: by default, half of their dtype's digits.

    Two kernels differ by a few units in the last digit, another formula by much more. Float64 counts as float32,
    in which some models compute their softmax. NaN agrees with NaN: weights without a finite output are no matter
    of the architecture.
    """
    if tolerance is None:
        tolerance = max(torch.finfo(got.dtype).eps, torch.finfo(torch.float32).eps) ** 0.5
    got, want = got.double(), want.double()
    largest = want.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    return torch.allclose(got, want, rtol=0.0, atol=tolerance * largest, equal_nan=True)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off until the block ends."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
