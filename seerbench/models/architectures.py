"""Say which Hugging Face models are supported, and find the parts of one: its attention layers and its RoPE.

A model of a listed architecture also has to pass the check of self_check.py, since a subclass, remote code or a
setting may change what it computes. To support another architecture, list it here: the check says whether it fits.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from seerbench.core.problem import Rope
from seerbench.errors import ModelError, Refused

# `model_type` of a transformers config -> the architecture's name.
SUPPORTED = {
    "llama": "Llama",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "qwen2": "Qwen2",
    "qwen2_moe": "Qwen2-MoE",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3-MoE",
}
# Kinds of RoPE whose frequencies depend on the length of the prompt.
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def unsupported(model: Any, reason: str) -> ModelError:
    """Return the error for a model that methods cannot enter: its class, the reason, and what is supported."""
    *names, last = SUPPORTED.values()
    return ModelError(
        f"{type(model).__name__} cannot run SeerBench's methods: {reason}. Supported are causal language models of "
        f"the architectures {', '.join(names)} and {last}"
    )


def require_supported(model: Any) -> None:
    """Raise ModelError unless `model` is a causal language model of a listed architecture."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in SUPPORTED:
        what = f"its architecture is {model_type!r}" if model_type else "it is no model of transformers"
        raise unsupported(model, what)
    if not hasattr(model, "lm_head") or not hasattr(getattr(model, "model", None), "rotary_emb"):
        raise unsupported(model, "it lacks `model.rotary_emb` or `lm_head`, which a causal language model has")


def attention_layers(model: Any) -> list[nn.Module]:
    """Return the attention modules of a supported model in the order of their layers.

    Raises:
        ModelError: the architecture is not supported, or some layers have no attention of the usual form.
    """
    require_supported(model)
    layers = [module for module in model.modules() if hasattr(module, "layer_idx") and hasattr(module, "q_proj")]
    layers.sort(key=lambda module: module.layer_idx)
    count = model.config.num_hidden_layers
    if [layer.layer_idx for layer in layers] != [*range(count)]:
        raise unsupported(model, f"{len(layers)} of its {count} layers have attention with q_proj and k_proj")
    return layers


def rope_of(model: Any) -> Rope:
    """Return the rotary embedding of a supported model at any positions, with the model's length scaling.

    All layers ask for one tensor of positions (`block_starts`), so its tables are made once. Otherwise their twenty
    small launches per layer would be most of a gate's time in a short prefill.

    Raises:
        ModelError: the architecture is not supported.
        Refused: from the rotary embedding, if its frequencies depend on the length of the prompt.
    """
    require_supported(model)
    rotary = model.model.rotary_emb

    def rope(positions: Tensor) -> tuple[Tensor, Tensor]:
        if any(kind in rotary.rope_type for kind in LENGTH_DEPENDENT_ROPE):
            raise Refused(
                "a gate needs rotations that do not depend on the prompt's length; this model has RoPE of the type "
                f"{rotary.rope_type!r}"
            )
        cos, sin = rotary(torch.zeros(1, device=positions.device), positions[None])
        return cos[0], sin[0]

    return functools.lru_cache(maxsize=2)(rope)
