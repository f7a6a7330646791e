"""A model by its geometry alone, and what each method has there in place of what it learns from a real model.

Time to first token hardly depends on what the weights say: the matrices have the same sizes, and a block-sparse
kernel reads as many blocks of one mask as of another. So Table 4 can be measured at Llama-3.1-8B's geometry
without its weights, as long as each method skips what it would skip:

    SeerAttention   gates as they are before training, top-k at the requested sparsity
    MoA             windows drawn at random, as many long and short ones as the requested sparsity allows
    MInference      one vertical-slash budget for all heads, such that the requested sparsity comes out. Its own
                    (512, 2048) would not do: on random weights the best diagonals lie apart from each other,
                    and 2048 of them touch most of a long context, where a trained model's lie side by side

Rows of such a model say `random weights:<name>` under inputs. Nothing about accuracy can be learned from one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seerbench.baselines.minference import SLASH, VERTICAL, Pattern, pattern_tiles, save_patterns
from seerbench.baselines.moa import BETAS, write_profile
from seerbench.results import atomically

INPUTS = "random weights"  # what `inputs` of the rows starts with
STEPS = 12  # bisections of MInference's budgets: the sparsity is met within half a percent


def random_model(config: Mapping[str, Any], device: str, dtype: str, seed: int = 0) -> Any:
    """A model of a transformers config (with its `model_type`), its weights drawn as for training from scratch."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    with torch.device(device):  # 8B weights are drawn where they are used
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**config), dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
    return model.eval()


def draw_profile(path: Path, name: str, layers: int, heads: int, seed: int) -> None:
    """MoA's profile of no model: every head loses less the longer its window, some more than others.

    A window of share beta leaves (1 - beta)^2 of the causal pairs outside. They weigh less the farther away they
    are, hence the fourth power, and how much is drawn log-normally a head: MoA's solver then gives windows of
    many lengths.
    """
    weights = np.random.default_rng(seed).lognormal(sigma=1.0, size=(layers, heads, 1))
    influence = torch.from_numpy(weights * (1 - np.array(BETAS)) ** 4)
    atomically(
        path, lambda part: write_profile(part, influence, {"model": name, "drawn": "random, no calibration"})
    )


def fixed_budgets(q: Tensor, k: Tensor, sparsity: float, block: int = 64) -> Pattern:
    """MInference's (columns, diagonals), scaled from (512, 2048), with which `sparsity` is skipped on q and k.

    q [B, Hq, N, D], k [B, Hk, N, D], random. Found once, so that the plan that is timed does not search.
    """
    low, high = 2.0**-6, 2.0**6
    for _ in range(STEPS):
        factor = (low * high) ** 0.5
        pattern = Pattern("vertical_and_slash", round(VERTICAL * factor), round(SLASH * factor))
        skipped = 1.0 - pattern_tiles(q, k, [pattern] * q.shape[1], block).density()
        low, high = (low, factor) if skipped < sparsity else (factor, high)
    return pattern


def write_budgets(path: Path, pattern: Pattern, layers: int, heads: int) -> None:
    """The same budgets for every head, as the file that MInference reads."""
    atomically(path, lambda part: save_patterns(part, [[pattern] * heads] * layers))
