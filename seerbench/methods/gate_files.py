"""gate_files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from seerbench.methods.gate import AttnGate
from seerbench.methods.gate_config import GateConfig


def save_gates(path: Path, sets: Mapping[str, Sequence[AttnGate]]) -> None:
    """Write {name: a gate for each layer} to one safetensors file with their configs."""
    tensors, about = {}, {}
    for name, gates in sets.items():
        shape = {
            "q_heads": gates[0].q_heads,
            "kv_heads": gates[0].wk.shape[0],
            "head_dim": gates[0].head_dim,
        }
        about[name] = {"config": asdict(gates[0].config), "layers": len(gates), **shape}
        for index, gate in enumerate(gates):
            tensors |= {
                f"{name}.{index}.{key}": value.detach().contiguous() for key, value in gate.state_dict().items()
            }
    save_file(tensors, str(path), metadata={"gates": json.dumps(about)})


def gate_set_names(path: Path) -> list[str]:
    """The gate sets in a file of `save_gates`."""
    with safe_open(str(path), framework="pt") as file:
        return list(json.loads(file.metadata()["gates"]))


def load_gates(path: Path, name: str | None = None) -> list[AttnGate]:
    """The gate set `name` (the only one if None) of a file; ValueError lists the names that it has."""
    with safe_open(str(path), framework="pt") as file:
        about = json.loads(file.metadata()["gates"])
        if name is None and len(about) == 1:
            name = next(iter(about))
        if name not in about:
            raise ValueError(f"{path} has no gate set {name!r}; it has {', '.join(about)}")
        one = about[name]
        gates = []
        for index in range(one["layers"]):
            gate = AttnGate(GateConfig(**one["config"]), one["q_heads"], one["kv_heads"], one["head_dim"])
            gate.load_state_dict({key: file.get_tensor(f"{name}.{index}.{key}") for key in gate.state_dict()})
            gates.append(gate.requires_grad_(False))
    return gates
