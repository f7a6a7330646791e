"""yarn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from seerbench.errors import ModelError


def load_with_yarn(folder: Path | str, factor: float, revision: str | None = None) -> nn.Module:
    """The model in `folder` with YaRN scaling of its RoPE by `factor`, in fp32 for training."""
    config = with_yarn(AutoConfig.from_pretrained(folder, revision=revision), factor)
    return AutoModelForCausalLM.from_pretrained(
        folder, config=config, revision=revision, dtype=torch.float32, attn_implementation="sdpa"
    )


def with_yarn(config: Any, factor: float) -> Any:
    """A model's config with YaRN scaling of its RoPE by `factor`; the context it was trained at is the original.

    transformers computes YaRN's correction range from `original_max_position_embeddings`. ModelError for a model
    whose RoPE is scaled already.
    """
    kind = config.rope_parameters["rope_type"]
    if kind != "default":
        raise ModelError(f"this model's RoPE is scaled already ({kind}); YaRN is for one that is not")
    original = config.max_position_embeddings
    config.rope_parameters = {
        "rope_type": "yarn",
        "rope_theta": config.rope_parameters["rope_theta"],
        "factor": float(factor),
        "original_max_position_embeddings": original,
    }
    config.max_position_embeddings = int(original * factor)
    return config
