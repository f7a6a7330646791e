"""Extend the context of a model with YaRN (arXiv:2309.00071), whose formulas transformers computes.

`sources.load` calls `with_yarn` before it makes the model.
"""

from __future__ import annotations

from typing import Any

from seerbench.errors import ModelError


def with_yarn(config: Any, factor: float) -> Any:
    """Set YaRN scaling of RoPE by `factor` in a transformers config, and return the config.

    The context that the model was trained at becomes `original_max_position_embeddings`, from which transformers
    computes YaRN's correction range. All other RoPE parameters, such as `partial_rotary_factor`, keep their values.

    Args:
        config: changed in place.
        factor: how many times longer the new context is.

    Raises:
        ModelError: the model has no RoPE, several, or one that is scaled already.
    """
    rope = getattr(config, "rope_parameters", None)
    if not rope:
        raise ModelError(
            f"the architecture {config.model_type} has no RoPE, which YaRN scales; choose another model"
        )
    if any(isinstance(value, dict) for value in rope.values()):
        kinds = ", ".join(rope)
        raise ModelError(
            f"the architecture {config.model_type} has several RoPEs ({kinds}); SeerBench applies YaRN to models "
            "whose layers share one"
        )
    rope_type = rope.get("rope_type", "default")
    if rope_type != "default":
        raise ModelError(
            f"this model's RoPE is scaled already ({rope_type}), and YaRN needs one that is not scaled; remove "
            "`yarn`, or choose the model before its extension"
        )
    original = config.max_position_embeddings
    scaling = {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": original}
    config.rope_parameters = {**rope, **scaling}
    config.max_position_embeddings = int(original * factor)
    return config
