"""Write sets of gates to a safetensors file with their options, and read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from seerbench.core.finite import require_finite
from seerbench.errors import ModelError
from seerbench.methods.gate import AttnGate
from seerbench.methods.gate_config import GateConfig
from seerbench.reading import reading

# The arguments of AttnGate after its config, as a file's metadata names them.
SHAPE = ("q_heads", "kv_heads", "head_dim")
METADATA = "gates"  # the field of a file's metadata that describes its gate sets
CURE = "make it with `seerbench distill PRESET GATES` or `seerbench import-gates PRESET GATES`"


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
    save_file(tensors, str(path), metadata={METADATA: json.dumps(described)})


def gates_in_bf16(path: Path, names: Sequence[str]) -> bytes:
    """Return some gate sets of a file that `save_gates` wrote, as the content of such a file with bfloat16 weights.

    Raises:
        ModelError: the file cannot be read, `save_gates` did not write it, or it lacks one of the sets.
    """
    with reading(path, ModelError, CURE), safe_open(str(path), framework="pt") as file:
        sets = _described(file, path)
        for name in names:
            if name not in sets:
                raise ModelError(f"{path} has no gate set {name!r}; it has {', '.join(sets)}")
        wanted = [key for key in file.keys() if key.split(".")[0] in names]  # noqa: SIM118
        tensors = {key: file.get_tensor(key).bfloat16() for key in wanted}
    return save(tensors, metadata={METADATA: json.dumps({name: sets[name] for name in names})})


def gate_set_names(path: Path) -> list[str]:
    """Return the names of the gate sets in a file that `save_gates` wrote.

    Raises:
        ModelError: the file cannot be read, or `save_gates` did not write it.
    """
    with reading(path, ModelError, CURE), safe_open(str(path), framework="pt") as file:
        return list(_described(file, path))


def load_gates(path: Path, name: str | None = None) -> list[AttnGate]:
    """Read one gate set from a file that `save_gates` wrote; its parameters require no gradients.

    Args:
        path: the file.
        name: the set; None for the only set of the file.

    Returns:
        One gate per layer.

    Raises:
        ModelError: the file cannot be read, or `save_gates` did not write it; weights are missing, left over, of
            another shape or not finite; it has no set of this name, or several and no name is given.
    """
    with reading(path, ModelError, CURE), safe_open(str(path), framework="pt") as file:
        sets = _described(file, path)
        if name is None and len(sets) == 1:
            name = next(iter(sets))
        if name not in sets:
            raise ModelError(f"{path} has no gate set {name!r}; it has {', '.join(sets)}")
        described = sets[name]
        config, shape = GateConfig(**described["config"]), [described[key] for key in SHAPE]
        stored = {key: file.get_tensor(key) for key in file.keys() if key.startswith(f"{name}.")}  # noqa: SIM118
        gates = [AttnGate(config, *shape) for _ in range(described["layers"])]
    wanted = {
        f"{name}.{index}.{key}": value
        for index, gate in enumerate(gates)
        for key, value in gate.state_dict().items()
    }
    _require_equal_names(stored, wanted, path)
    require_finite(stored.items(), str(path), CURE)
    for key, weight in wanted.items():
        weight.copy_(stored[key])
    return [gate.requires_grad_(False) for gate in gates]


def _described(file: Any, path: Path) -> dict[str, dict[str, Any]]:
    """Return what the metadata of an open safetensors file say of each gate set; raise ModelError without any."""
    metadata = file.metadata() or {}
    if METADATA not in metadata:
        raise ModelError(f"{path} holds no gates: its metadata have no field {METADATA!r}; {CURE}")
    described: dict[str, dict[str, Any]] = json.loads(metadata[METADATA])
    return described


def _require_equal_names(stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    """Raise ModelError unless both hold tensors of the same names and shapes; name the first that differs."""
    for key in sorted(stored.keys() | wanted.keys()):
        found, shape = (list(tensors[key].shape) if key in tensors else None for tensors in (stored, wanted))
        if found != shape:
            said = (
                "is missing" if found is None else "is left over" if shape is None else f"is {found}, not {shape}"
            )
            raise ModelError(f"{path} does not fit its own metadata: the weight {key} {said}; {CURE}")
