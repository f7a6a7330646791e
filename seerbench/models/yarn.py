"""Extend the context of a model with YaRN (arXiv:2309.00071), whose formulas transformers computes.

`sources.load` and fine-tuning use this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from seerbench.errors import ModelError


def load_with_yarn(folder: Path | str, factor: float, revision: str | None = None) -> nn.Module:
    """Load a causal language model with YaRN scaling of its RoPE, in float32 for training.

    Args:
        folder: a local folder or a hub id.
        factor: how many times longer the new context is.
        revision: commit or tag of the hub id.

    Raises:
        ModelError: the model's RoPE is scaled already.
    """
    config = with_yarn(AutoConfig.from_pretrained(folder, revision=revision), factor)
    return AutoModelForCausalLM.from_pretrained(
        folder, config=config, revision=revision, dtype=torch.float32, attn_implementation="sdpa"
    )


def with_yarn(config: Any, factor: float) -> Any:
    """Set YaRN scaling of RoPE by `factor` in a transformers config, and return the config.

    The context that the model was trained at becomes `original_max_position_embeddings`, from which transformers
    computes YaRN's correction range.

    Raises:
        ModelError: the config's RoPE is scaled already.
    """
    rope_type = config.rope_parameters["rope_type"]
    if rope_type != "default":
        raise ModelError(f"this model's RoPE is scaled already ({rope_type}); YaRN needs one that is not scaled")
    original = config.max_position_embeddings
    config.rope_parameters = {
        "rope_type": "yarn",
        "rope_theta": config.rope_parameters["rope_theta"],
        "factor": float(factor),
        "original_max_position_embeddings": original,
    }
    config.max_position_embeddings = int(original * factor)
    return config
