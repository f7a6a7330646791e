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

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def random_model(config: Mapping[str, Any], device: str, dtype: str, seed: int = 0) -> Any:
    """Return a model of a transformers config in evaluation mode, with initial weights as for training.

    Args:
        config: entries of the transformers config, `model_type` among them.
        device: where the weights are drawn and stay; eight billion of them take too long on a CPU.
        dtype: name of the torch dtype of the weights.
        seed: the same seed draws the same weights on the same device.
    """
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**config), dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
    return model.eval()
