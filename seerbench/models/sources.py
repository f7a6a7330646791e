"""Load a causal language model from a local folder or the hub, and check that gates fit it.

Measurements and trainings load their models here; gguf_models.py, random_weights.py and training make the others.

transformers fills weights that a file lacks with random numbers and only logs it. Here the loader's report is read,
and a model whose weights do not fit its config exactly is refused.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from seerbench.core.finite import require_finite
from seerbench.errors import ModelError, UserError
from seerbench.methods.gate import AttnGate
from seerbench.models.yarn import with_yarn
from seerbench.reading import first_line, read_json, reading

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Files of a model folder that transformers reads, if they exist.
JSON_FILES = ("generation_config.json", "model.safetensors.index.json")
WEIGHT_FILES = "model*.safetensors"
CURE = (
    "fetch this model again, or make it with `seerbench fetch PRESET MODEL`, `seerbench train PRESET MODEL` or "
    "`seerbench finetune PRESET MODEL`"
)
# Part of the names of gates, which the folders of SeerAttention's first code hold among the model's weights.
GATE_WEIGHT = ".attn_gate."
NAMES_SHOWN = 3  # weights that a message names; it counts the others


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
        ModelError: no model is there; its files are damaged; it is no causal language model; weights are missing,
            left over, of another shape or not finite; or YaRN does not apply to its RoPE.
    """
    config = read_config(source, revision)
    if yarn is not None:
        config = with_yarn(config, yarn)
    if os.path.isdir(source):
        _check_files(Path(source))
    with _loading(source, revision):
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            revision=revision,
            dtype=DTYPES[dtype],
            attn_implementation="sdpa",
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # The report then names what has another shape, and is refused below.
            output_loading_info=True,
        )
    _check_report(report, source)
    model = model.to(device).eval()
    require_finite(model.named_parameters(), f"the model at {source}, loaded as {dtype}", CURE)
    return model


def read_config(source: str | Path, revision: str | None = None) -> Any:
    """Return the transformers config of a model, of which no other file is read.

    Raises:
        ModelError: there is none, transformers does not know the architecture, or it is an encoder-decoder.
    """
    if os.path.isdir(source):
        read_json(Path(source) / "config.json", ModelError, CURE)
    with _loading(source, revision):
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{source} is an encoder-decoder ({config.model_type}); choose a causal language model")
    return config


@contextmanager
def _loading(source: str | Path, revision: str | None) -> Iterator[None]:
    """Turn what transformers raises while it loads from `source`, of undocumented types, into a ModelError."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as fault:
        at = f" --revision {revision}" if revision else ""
        cure = CURE if os.path.isdir(source) else f"give a local folder, or fetch it with: hf download {source}{at}"
        raise ModelError(f"no model can be loaded from {source} ({first_line(fault)}); {cure}") from fault


def _check_files(folder: Path) -> None:
    """Raise ModelError for the first file of a model folder that cannot be read; of weights, the header is read."""
    for name in JSON_FILES:
        if os.path.lexists(folder / name):
            read_json(folder / name, ModelError, CURE)
    for path in sorted(folder.glob(WEIGHT_FILES)):
        with reading(path, ModelError, CURE), safe_open(str(path), framework="pt"):
            pass


def _check_report(report: Mapping[str, Collection[Any]], source: str | Path) -> None:
    """Raise ModelError unless the weights at `source` are exactly those of the architecture.

    report: what transformers returns for `output_loading_info`.
    """
    shapes = [f"{name} {tuple(found)} for {tuple(wanted)}" for name, found, wanted in report["mismatched_keys"]]
    left_over = [name for name in report["unexpected_keys"] if GATE_WEIGHT not in name]
    kinds = {"missing": report["missing_keys"], "of another shape": shapes, "left over": left_over}
    faults = [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names]
    if faults:
        raise ModelError(f"the weights at {source} do not fit its config.json: {'; '.join(faults)}; {CURE}")


def _some(names: Collection[str]) -> str:
    """Return the first names in alphabetical order, and dots if there are more."""
    return ", ".join(sorted(names)[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")


def check_gates(gates: Sequence[AttnGate], source: str | Path, revision: str | None = None) -> None:
    """Raise ModelError unless gates, one per layer, fit the model at `source`. Only the model's config is read."""
    config = read_config(source, revision)
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
