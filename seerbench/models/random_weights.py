"""A model by its geometry alone: Llama-3.1-8B's matrices and heads with random weights.

Time to first token hardly depends on what the weights say: the matrices have the same sizes, and a block-sparse
kernel reads as many blocks of one mask as of another. So Table 4 can be measured without the weights, as long as
each method skips what it would skip (steps.random_arms, latency.ttft_sweep):

    SeerAttention   gates as they are before training, top-k at the requested sparsity
    MoA             a plan searched for random influence at the requested sparsity, the same in every layer
    MInference      its budgets scaled once so that the requested sparsity comes out. As they are, (512, 2048), they
                    would not do: on random weights the best diagonals lie apart from each other, and 2048 of
                    them touch most of a long context, where a trained model's lie side by side

Rows of such a model say `random weights:<name>` under inputs. Nothing about accuracy can be learned from one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

INPUTS = "random weights"  # what `inputs` of the rows starts with


def random_model(config: Mapping[str, Any], device: str, dtype: str, seed: int = 0) -> Any:
    """A model of a transformers config (with its `model_type`), its weights drawn as for training from scratch."""
    torch.manual_seed(seed)
    with torch.device(device):  # 8B weights are drawn where they are used
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**config), dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
    return model.eval()
