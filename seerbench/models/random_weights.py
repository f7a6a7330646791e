"""Make a model from its geometry alone: the matrices and heads of Llama-3.1-8B, for example, with random weights.

Time to first token hardly depends on the values of the weights: the matrices have the same sizes, and a
block-sparse kernel reads as many blocks of one mask as of another of equal density. So the time can be measured
without the weights if each method skips as much as it would with them. The steps that time such a model use

    SeerAttention   gates with their initial weights, and the top-k rule at the requested sparsity
    MoA             one plan for all layers, searched for random influence at the requested sparsity
    MInference      its budgets, scaled once to the requested sparsity. Unscaled, (512, 2048), they keep too much:
                    the best diagonals are adjacent in a trained model and scattered in a random one, where 2048
                    of them touch most blocks of a long context

Rows of such a model have `inputs_kind` random_weights. Its accuracy means nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from seerbench.errors import ModelError, UserError
from seerbench.reading import first_line

# Entries that transformers accepts in place of `rope_parameters`.
ROPE_ENTRIES = ("rope_theta", "rope_scaling")


def random_model(config: Mapping[str, Any], device: str, dtype: str, seed: int = 0) -> Any:
    """Return a model of a transformers config in evaluation mode, with initial weights as for training.

    Args:
        config: entries of the transformers config, `model_type` among them.
        device: where the weights are drawn and stay; eight billion of them take too long on a CPU.
        dtype: name of the torch dtype of the weights.
        seed: the same seed draws the same weights on the same device.

    Raises:
        ModelError: the architecture has no such entry, or transformers makes no causal language model of them.
    """
    torch.manual_seed(seed)
    try:
        _require_known(config)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(**config), dtype=getattr(torch, dtype), attn_implementation="sdpa"
            )
    except (UserError, MemoryError):
        raise
    except Exception as fault:  # transformers does not document the types
        raise ModelError(f"no model can be made of the geometry {dict(config)} ({first_line(fault)})") from fault
    return model.eval()


def _require_known(config: Mapping[str, Any]) -> None:
    """Raise ModelError for an entry that the architecture does not have.

    transformers keeps such an entry and ignores it, so a misspelt one would leave the default in its place.
    """
    default = AutoConfig.for_model(config["model_type"])
    known = ["model_type", *ROPE_ENTRIES, *(name for name in vars(default) if not name.startswith("_"))]
    for key in config:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"see transformers' {type(default).__name__}"
            raise ModelError(f"the architecture {config['model_type']} has no entry {key!r}; {hint}")
