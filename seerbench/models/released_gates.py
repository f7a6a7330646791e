"""Read the gates that SeerAttention's authors released, so that a user of their models need not train any.

The step `import-gates` reads them from a local folder or from the hub (microsoft/SeerAttention links them), in one
of two formats:

    gates only    `attn_gate_weights.pth`, a state dict, and config.json with `seerattn_*` keys: the later recipe
                  (v2), as SeerAttention-Llama-3.1-8B-AttnGates and its siblings are published
    entire model  safetensors with the gates among the weights, and config.json with `attn_gate_type`: as the first
                  code (v1) saved a training

In both, a gate's weights are called `model.layers.<layer>.self_attn.attn_gate.mask_linear_{q,k}.weight` and have
the shape [heads, inputs, outputs], as ours have. A gate without a linear layer on Q is a `single` projection.

Gates of SeerAttention-R (recipe r, for decoding) are published as gates only. Their weights are called
`attngate_linear_{q,k}` and `attngate_{q,k}norm`, and their shapes say how many heads the model has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open
from torch import Tensor

from seerbench.core.finite import require_finite
from seerbench.errors import ModelError
from seerbench.methods.decode_gate import DecodeGate
from seerbench.methods.decode_gate_config import DecodeGateConfig
from seerbench.methods.gate import AttnGate
from seerbench.methods.gate_config import POOLINGS, GateConfig
from seerbench.reading import first_line, read_json, reading

CURE = "fetch these gates again, or give another folder or hub id"
MODEL_KEYS = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size")  # of config.json
GATES_FILE = "attn_gate_weights.pth"
INDEX_FILE = "model.safetensors.index.json"  # of a model in several files
MODEL_FILE = "model.safetensors"  # of a model in one file
WEIGHT = re.compile(r"model\.layers\.(\d+)\.self_attn\.attn_gate\.mask_linear_([qk])\.weight")
# The weights of SeerAttention-R, whose gates choose blocks for decoding, and what they are called here.
DECODING_WEIGHT = re.compile(r"model\.layers\.(\d+)\.self_attn\.attn_gate\.attngate_(\w+)\.weight")
DECODING_NAMES = {"linear_q": "wq", "linear_k": "wk", "qnorm": "q_norm", "knorm": "k_norm"}


def read_released(source: Path | str, revision: str | None = None) -> list[AttnGate] | list[DecodeGate]:
    """Read released gates, one per layer, without gradients.

    Args:
        source: a local folder or a hub id.
        revision: commit or tag of the hub id.

    Returns:
        Gates in float32, whose `config.recipe` (v1, v2 or r) names the format that they were read from; those of
        recipe r are DecodeGates.

    Raises:
        ModelError: files, layers or weights are missing, or a shape does not fit the config.
    """
    folder = Path(source) if Path(source).is_dir() else _fetch(str(source), revision)
    model_config = read_json(folder / "config.json", ModelError, CURE)
    state = _state(folder, source)
    if any(map(DECODING_WEIGHT.fullmatch, state)):
        return _decode_gates(state, model_config, folder, source)
    with reading(folder / "config.json", ModelError, CURE):
        options = _gate_options(model_config, source)
        layers, *_ = (int(model_config[key]) for key in MODEL_KEYS)
    weights = {(int(match[1]), match[2]): state[name] for name in state if (match := WEIGHT.fullmatch(name))}
    if not weights:
        raise ModelError(f"{source} has no weights called {WEIGHT.pattern}")
    if {layer for layer, _ in weights} != set(range(layers)):
        raise ModelError(f"{source} has gates for {len({layer for layer, _ in weights})} of its {layers} layers")
    return [_gate(layer, weights, options, model_config, source) for layer in range(layers)]


def _gate_options(model_config: Mapping[str, Any], source: Path | str) -> dict[str, Any]:
    """Return options of GateConfig and the gate's hidden size, which v1 and v2 store under different keys.

    The first code stored no hidden size: it was that of a head.
    """
    recipe, prefix = ("v2", "seerattn_gate") if "seerattn_gate_type" in model_config else ("v1", "gate")
    gate_type = model_config.get("seerattn_gate_type") or model_config.get("attn_gate_type")
    pools = re.fullmatch(r"Q(\w+)_K(\w+)", str(gate_type))
    if pools is None or not {*pools.groups()} <= {*POOLINGS}:
        raise ModelError(f"{source}/config.json has no gate type such as Qavg_Kmaxmin, but {gate_type!r}")
    return {
        "q_pool": pools[1],
        "k_pool": pools[2],
        "block": model_config[f"{prefix}_block_size"],
        "hidden": model_config.get(f"{prefix}_hidden_size", _head_dim(model_config)),
        "recipe": recipe,
    }


def _head_dim(model_config: Mapping[str, Any]) -> int:
    """Return the size of a head: as the config says, or else the hidden size over the number of heads."""
    return model_config.get("head_dim") or model_config["hidden_size"] // model_config["num_attention_heads"]


def _gate(
    layer: int,
    weights: Mapping[tuple[int, str], Tensor],
    options: Mapping[str, Any],
    model_config: Mapping[str, Any],
    source: Path | str,
) -> AttnGate:
    """Return the gate of one layer; `weights` and `options` are from `_weights` and `_gate_options`."""
    heads, kv_heads = model_config["num_attention_heads"], model_config["num_key_value_heads"]
    head_dim = _head_dim(model_config)
    if options["hidden"] != head_dim:
        raise ModelError(
            f"{source}: gates with a hidden size of {options['hidden']} on heads of {head_dim}; SeerBench supports "
            "gates whose hidden size is that of the head, as in the paper"
        )
    projection = "double" if (layer, "q") in weights else "single"
    config = GateConfig(**{key: options[key] for key in options if key != "hidden"}, projection=projection)
    gate = AttnGate(config, heads, kv_heads, head_dim)
    with torch.no_grad():
        for name, parameter in gate.named_parameters():  # wq, wk
            weight = weights.get((layer, name[1]))
            if weight is None:
                raise ModelError(f"{source} has no {name[1]} projection of the gate of layer {layer}; {CURE}")
            if weight.shape != parameter.shape:
                raise ModelError(
                    f"{source}: the {name[1]} projection of layer {layer} is {tuple(weight.shape)}, not "
                    f"{tuple(parameter.shape)} as {gate.config.pooling} on this model needs"
                )
            parameter.copy_(weight)
    require_finite(gate.named_parameters(), f"{source}, gate of layer {layer}", CURE)
    return gate.requires_grad_(False)


def _decode_gates(
    state: Mapping[str, Tensor], model_config: Mapping[str, Any], folder: Path, source: Path | str
) -> list[DecodeGate]:
    """Return the gates of SeerAttention-R in a state dict, one per layer, with the options of their config.json."""
    with reading(folder / "config.json", ModelError, CURE):
        queries = model_config["seerattn_q_head_pooling_type"]
        keys = str(model_config["seerattn_k_seq_pooling_type"])
        block = int(model_config["seerattn_gate_block_size"])
    if queries != "Qproj" or keys.removeprefix("K") not in POOLINGS:
        raise ModelError(
            f"{source} has gates for decoding of the type {queries}_{keys}; SeerBench reads Qproj with one of "
            f"{', '.join(f'K{pooling}' for pooling in POOLINGS)}"
        )
    if not model_config.get("seerattn_use_rope", True):
        raise ModelError(f"{source} has gates for decoding without RoPE; SeerBench reads gates with RoPE")
    norm = bool(model_config.get("seerattn_use_qk_norm", False))
    config = DecodeGateConfig(k_pool=keys.removeprefix("K"), norm=norm, block=block)
    layers: dict[int, dict[str, Tensor]] = {}
    for name in state:
        if match := DECODING_WEIGHT.fullmatch(name):
            layers.setdefault(int(match[1]), {})[DECODING_NAMES.get(match[2], name)] = state[name]
    if set(layers) != set(range(len(layers))):
        raise ModelError(f"{source} has gates for the layers {sorted(layers)}, and not for all from 0 on; {CURE}")
    return [_decode_gate(config, layers[layer], f"{source}, gate of layer {layer}") for layer in range(len(layers))]


def _decode_gate(config: DecodeGateConfig, weights: Mapping[str, Tensor], place: str) -> DecodeGate:
    """Return a gate with these weights; raise ModelError, which names the place, if some do not fit."""
    shape = list(weights["wq"].shape) if "wq" in weights else []
    if len(shape) != 4 or shape[2] != shape[3]:
        raise ModelError(
            f"{place}: the projection of the queries is {shape or 'missing'}, not [key/value heads, query heads "
            "per key/value head, head_dim, head_dim]"
        )
    gate = DecodeGate(config, shape[0] * shape[1], shape[0], shape[2])
    wanted = {name: list(parameter.shape) for name, parameter in gate.named_parameters()}
    found = {name: list(weight.shape) for name, weight in weights.items()}
    if found != wanted:
        raise ModelError(f"{place} has the weights {found}, not {wanted} as its config.json needs; {CURE}")
    gate.load_state_dict(weights)
    require_finite(gate.named_parameters(), place, CURE)
    return gate.requires_grad_(False)


def _state(folder: Path, source: Path | str) -> dict[str, Tensor]:
    """Return the weights in a folder that may be those of gates, by their names."""
    if (folder / GATES_FILE).is_file():
        with reading(folder / GATES_FILE, ModelError, CURE):
            return dict(torch.load(folder / GATES_FILE, map_location="cpu", weights_only=True))
    return _gates_in_model(folder, source)


def _gates_in_model(folder: Path, source: Path | str) -> dict[str, Tensor]:
    """Return the gates among the weights of an entire model, which is stored in one file or several."""
    if (folder / INDEX_FILE).is_file():
        files = sorted(set(_gates_of(folder / INDEX_FILE).values()))
    elif (folder / MODEL_FILE).is_file():
        files = [MODEL_FILE]
    else:
        raise ModelError(f"{source} has neither {GATES_FILE} nor {INDEX_FILE} nor {MODEL_FILE}")
    state: dict[str, Tensor] = {}
    for name in files:
        with reading(folder / name, ModelError, CURE), safe_open(str(folder / name), framework="pt") as file:
            state |= {key: file.get_tensor(key) for key in file.keys() if "attn_gate" in key}  # noqa: SIM118
    return state


def _gates_of(index: Path) -> dict[str, str]:
    """Read the index of a model in several files; return the gates' weights as name -> file."""
    weight_map = read_json(index, ModelError, CURE).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelError(f"{index} is no index of a model in several files: it has no weight_map; {CURE}")
    return {key: name for key, name in weight_map.items() if "attn_gate" in key}


def _fetch(source: str, revision: str | None) -> Path:
    """Fetch the files of a hub repository that hold gates, and no others; return their folder."""
    try:
        files = ["config.json", GATES_FILE, INDEX_FILE]
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=files))
        if not (folder / GATES_FILE).is_file():
            has_index = (folder / INDEX_FILE).is_file()
            weights = sorted(set(_gates_of(folder / INDEX_FILE).values())) if has_index else [MODEL_FILE]
            files = ["config.json", INDEX_FILE, *weights]
            snapshot_download(source, revision=revision, allow_patterns=files)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f" --revision {revision}" if revision else ""
        raise ModelError(
            f"no gates at {source} ({first_line(error)}). Give a local folder in the config, or fetch them "
            f"with: hf download {source}{at}"
        ) from None
    return folder
