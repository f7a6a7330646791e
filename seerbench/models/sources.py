"""Load a causal language model from a local folder or the hub, and check that gates fit it.

Measurements and distillation load their models here; random_weights.py and training make the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from seerbench.errors import ModelError
from seerbench.methods.gate import AttnGate
from seerbench.models.yarn import with_yarn

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load(
    source: str | Path,
    device: str = "cpu",
    dtype: str = "float32",
    revision: str | None = None,
    yarn: float | None = None,
) -> Any:
    """Load a causal language model in evaluation mode, with dense attention.

    Args:
        source: a local folder, or a hub id, which is fetched unless HF_HUB_OFFLINE is set.
        device: where the model is moved to.
        dtype: of the weights, a name in DTYPES.
        revision: commit or tag of a hub id.
        yarn: scale RoPE by this factor and keep the weights (`yarn.with_yarn`).

    Raises:
        ModelError: no model is there, or YaRN is requested for a model whose RoPE is scaled already.
    """
    options = {"revision": revision, "dtype": DTYPES[dtype], "attn_implementation": "sdpa"}
    try:
        if yarn is not None:
            options["config"] = with_yarn(AutoConfig.from_pretrained(source, revision=revision), yarn)
        model = AutoModelForCausalLM.from_pretrained(source, **options)
    except OSError as error:
        at = f" --revision {revision}" if revision else ""
        raise ModelError(
            f"no model at {source}: {str(error).splitlines()[0]} Give a local folder in the config, or fetch "
            f"it with: hf download {source}{at}"
        ) from None
    return model.to(device).eval()


def check_gates(gates: Sequence[AttnGate], source: str | Path, revision: str | None = None) -> None:
    """Raise ModelError unless gates, one per layer, fit the model at `source`. Only the model's config is read."""
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
    except OSError as error:
        raise ModelError(f"no model at {source}: {str(error).splitlines()[0]}") from None
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    wanted = [config.num_hidden_layers, config.num_attention_heads, head_dim]
    given = [len(gates), gates[0].q_heads, gates[0].head_dim]
    if gates[0].wq is not None:
        wanted.append(config.num_key_value_heads)
        given.append(gates[0].wk.shape[0])
    if given != wanted:
        raise ModelError(
            f"these gates are for another model than {source}: layers, heads, head_dim (and key/value heads) are "
            f"{given} for the gates and {wanted} for the model"
        )
