"""Gates that SeerAttention's authors released, read into ours, so that a user of their models may skip training.

They come in two shapes, in a local folder or on the hub (microsoft/SeerAttention links them):

    gates only   `attn_gate_weights.pth`, a state dict, beside a config.json with `seerattn_*` keys: the later
                 recipe (v2). This is how SeerAttention-Llama-3.1-8B-AttnGates and its siblings are published
    whole model  safetensors with the gates among the weights, config.json with `attn_gate_type`: how the first
                 code (v1) saved what it had trained

In both a gate's weights are called `model.layers.<layer>.self_attn.attn_gate.mask_linear_{q,k}.weight`, shaped
[heads, inputs, outputs] as ours are; a gate without a linear on Q is a `single` projection.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import safe_open
from torch import Tensor

from seerbench.errors import ModelError
from seerbench.methods.gate import AttnGate
from seerbench.methods.gate_config import POOLINGS, GateConfig

STATE, INDEX, WHOLE = "attn_gate_weights.pth", "model.safetensors.index.json", "model.safetensors"
WEIGHT = re.compile(r"model\.layers\.(\d+)\.self_attn\.attn_gate\.mask_linear_([qk])\.weight")
DECODING = "attngate_linear"  # the weights of SeerAttention-R's gates, which choose blocks for decoding


def read_released(source: Path | str, revision: str | None = None) -> list[AttnGate]:
    """The gates in a folder or under a hub id, one a layer, in bf16 or whatever they were saved in.

    Their config's recipe says where they come from: v1 or v2. ModelError says what is missing or does not fit.
    """
    folder = Path(source) if Path(source).is_dir() else _fetch(str(source), revision)
    try:
        about = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise ModelError(f"{source} has no config.json, which says what its gates pool") from None
    config = _config(about, source)
    weights = _weights(folder, source)
    layers = about["num_hidden_layers"]
    if {layer for layer, _ in weights} != set(range(layers)):
        raise ModelError(f"{source} has gates for {len({layer for layer, _ in weights})} of its {layers} layers")
    return [_gate(layer, weights, config, about, source) for layer in range(layers)]


def _config(about: Mapping[str, Any], source: Path | str) -> dict[str, Any]:
    """What the two generations of config files call by different names."""
    recipe, prefix = ("v2", "seerattn_gate") if "seerattn_gate_type" in about else ("v1", "gate")
    kind = about.get("seerattn_gate_type") or about.get("attn_gate_type")
    named = re.fullmatch(r"Q(\w+)_K(\w+)", kind or "")
    if named is None or not {*named.groups()} <= {*POOLINGS}:
        raise ModelError(f"{source}/config.json has no gate type such as Qavg_Kmaxmin (it says {kind!r})")
    return {
        "q_pool": named[1],
        "k_pool": named[2],
        "block": about[f"{prefix}_block_size"],
        "hidden": about[f"{prefix}_hidden_size"],
        "recipe": recipe,
    }


def _gate(
    layer: int,
    weights: Mapping[tuple[int, str], Tensor],
    config: dict[str, Any],
    about: Mapping[str, Any],
    source: Any,
) -> AttnGate:
    heads, head_dim = about["num_attention_heads"], about["hidden_size"] // about["num_attention_heads"]
    if config["hidden"] != head_dim:
        raise ModelError(
            f"{source}: gates with a hidden size of {config['hidden']} on heads of {head_dim}; SeerBench has those "
            "whose hidden size is the head's, as in the paper"
        )
    options = {key: value for key, value in config.items() if key != "hidden"}
    projection = "double" if (layer, "q") in weights else "single"
    gate = AttnGate(GateConfig(**options, projection=projection), heads, about["num_key_value_heads"], head_dim)
    with torch.no_grad():
        for name, own in gate.named_parameters():
            given = weights[layer, name[1]]  # wq, wk
            if given.shape != own.shape:
                raise ModelError(
                    f"{source}: the {name[1]} projection of layer {layer} is {tuple(given.shape)}, not "
                    f"{tuple(own.shape)} as {gate.config.pooling} on this model takes"
                )
            own.copy_(given)
    return gate.requires_grad_(False)


def _weights(folder: Path, source: Path | str) -> dict[tuple[int, str], Tensor]:
    """(layer, "q" or "k") -> weight."""
    if (folder / STATE).is_file():
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    else:
        state = _in_shards(folder, source)
    if any(DECODING in name for name in state):
        raise ModelError(f"{source} has SeerAttention-R's gates, which are for decoding; SeerBench times prefill")
    found = {(int(match[1]), match[2]): state[name] for name in state if (match := WEIGHT.fullmatch(name))}
    if not found:
        raise ModelError(f"{source} has no weights called {WEIGHT.pattern}")
    return found


def _in_shards(folder: Path, source: Path | str) -> dict[str, Tensor]:
    """The gates among a whole model's weights, in one file or several."""
    if (folder / INDEX).is_file():
        files = sorted(set(_gates_of(folder / INDEX).values()))
    elif (folder / WHOLE).is_file():
        files = [WHOLE]
    else:
        raise ModelError(f"{source} has neither {STATE} nor {INDEX} nor {WHOLE}")
    state = {}
    for name in files:
        with safe_open(str(folder / name), framework="pt") as file:
            state |= {key: file.get_tensor(key) for key in file.keys() if "attn_gate" in key}  # noqa: SIM118
    return state


def _gates_of(index: Path) -> dict[str, str]:
    """Weight -> file, gates only."""
    return {key: name for key, name in json.loads(index.read_text())["weight_map"].items() if "attn_gate" in key}


def _fetch(source: str, revision: str | None) -> Path:
    """A folder with the files of a hub repository that gates are in, and no others."""
    try:
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=["config.json", STATE, INDEX]))
        if not (folder / STATE).is_file():
            wanted = sorted(set(_gates_of(folder / INDEX).values())) if (folder / INDEX).is_file() else [WHOLE]
            snapshot_download(source, revision=revision, allow_patterns=["config.json", INDEX, *wanted])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        at = f" --revision {revision}" if revision else ""
        raise ModelError(
            f"no gates at {source}: {str(error).splitlines()[0]} Give a local folder in the config, or fetch them "
            f"with: hf download {source}{at}"
        ) from None
    return folder
