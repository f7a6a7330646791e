"""Write sets of gates to a safetensors file with their options, and read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from seerbench.methods.gate import AttnGate
from seerbench.methods.gate_config import GateConfig

# The arguments of AttnGate after its config, as a file's metadata names them.
SHAPE = ("q_heads", "kv_heads", "head_dim")


def save_gates(path: Path, sets: Mapping[str, Sequence[AttnGate]]) -> None:
    """Write gate sets to one safetensors file, with their options in its metadata.

    Args:
        path: the file to write.
        sets: for each set's name, one gate per layer.
    """
    tensors: dict[str, Tensor] = {}
    described: dict[str, dict[str, Any]] = {}
    for name, gates in sets.items():
        shape = (gates[0].q_heads, gates[0].wk.shape[0], gates[0].head_dim)
        config = asdict(gates[0].config)
        described[name] = {"config": config, "layers": len(gates), **dict(zip(SHAPE, shape, strict=True))}
        for index, gate in enumerate(gates):
            tensors |= {
                f"{name}.{index}.{key}": value.detach().contiguous() for key, value in gate.state_dict().items()
            }
    save_file(tensors, str(path), metadata={"gates": json.dumps(described)})


def gate_set_names(path: Path) -> list[str]:
    """Return the names of the gate sets in a file that `save_gates` wrote."""
    with safe_open(str(path), framework="pt") as file:
        return list(json.loads(file.metadata()["gates"]))


def load_gates(path: Path, name: str | None = None) -> list[AttnGate]:
    """Read one gate set from a file that `save_gates` wrote; its parameters require no gradients.

    Args:
        path: the file.
        name: the set; None for the only set of the file.

    Returns:
        One gate per layer.

    Raises:
        ValueError: the file has no set of this name, or several and no name is given; the text lists its sets.
    """
    with safe_open(str(path), framework="pt") as file:
        sets = json.loads(file.metadata()["gates"])
        if name is None and len(sets) == 1:
            name = next(iter(sets))
        if name not in sets:
            raise ValueError(f"{path} has no gate set {name!r}; it has {', '.join(sets)}")
        described = sets[name]
        config, shape = GateConfig(**described["config"]), [described[key] for key in SHAPE]
        gates = []
        for index in range(described["layers"]):
            gate = AttnGate(config, *shape)
            gate.load_state_dict({key: file.get_tensor(f"{name}.{index}.{key}") for key in gate.state_dict()})
            gates.append(gate.requires_grad_(False))
    return gates
