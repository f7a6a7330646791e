"""Save and continue trainings, and write what they produce: model folders and files of gates.

Every file and folder appears complete or not at all. With several processes, all of them call these functions and
the first one writes; files hold unsharded tensors, so another number of processes may continue.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from seerbench.core.finite import require_finite
from seerbench.errors import ModelError
from seerbench.methods.decode_gate import DecodeGate
from seerbench.methods.gate import AttnGate
from seerbench.methods.gate_files import save_gates
from seerbench.reading import reading
from seerbench.training.fsdp import full_tensor, rank_and_world_size, shard_like
from seerbench.writing import atomically

CURE = "delete it and run again; the training then starts from its beginning"
DIVERGED = "its training diverged; lower its learning rate in the preset, or give it a longer warm-up"


def digest_of(*parts: object) -> str:
    """Return a hash of what decides a training (settings, corpus, first weights), to recognise its checkpoint.

    parts: of types that JSON has, or whose text tells them apart; weights as `weights_digest` returns them.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def weights_digest(weights: Iterable[Tensor]) -> str:
    """Return the sha256 of tensors, unsharded and on any device, one after the other; an 8B model takes seconds.

    It tells a model that was trained again from the one before, which has the same path.
    """
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def checkpoint_file(out: Path) -> Path:
    """Return the checkpoint of the training that writes `out`."""
    return _checkpoint_folder(out) / "state.safetensors"


def _temporary(out: Path) -> Path:
    """Return where a training writes `out` first: one name only, so that a killed one leaves no second model."""
    return out.with_name(out.name + ".tmp")


def _checkpoint_folder(out: Path) -> Path:
    return out.with_name(out.name + ".checkpoint")


def save_checkpoint(
    file: Path,
    params: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    digest: str,
    step: int,
    rows: list[dict],
) -> None:
    """Write everything that a training needs to continue into one safetensors file.

    Args:
        file: replaced as a whole.
        params: name -> trained tensor: those of a model, or of gates only.
        optimizers: of these tensors; their state is saved.
        digest: from `digest_of`.
        step: number of steps done. Batches depend on seed and step alone, so this is the state of the data too.
        rows: the training rows so far.
    """
    tensors = {f"param.{name}": param.detach() for name, param in params.items()}
    for number, optimizer in enumerate(optimizers):
        for param, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimizer.{number}.{param}.{key}"] = value
    tensors["rng.torch"] = torch.get_rng_state()
    tensors = {name: full_tensor(tensor).contiguous().cpu() for name, tensor in tensors.items()}
    if rank_and_world_size()[0]:
        return
    metadata = {"digest": digest, "step": str(step), "rows": json.dumps(rows)}
    atomically(file, lambda part: save_file(tensors, part, metadata=metadata), _temporary(file))


def load_checkpoint(
    file: Path,
    params: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    digest: str,
) -> tuple[int, list[dict]]:
    """Load a checkpoint into tensors and optimizers, in place.

    Without a file, or if it belongs to another training, nothing changes.

    Args:
        file: from `save_checkpoint`.
        params: name -> trained tensor.
        optimizers: as they were given to `save_checkpoint`.
        digest: from `digest_of`.

    Returns:
        The number of steps done and the training rows so far; (0, []) if nothing was loaded.

    Raises:
        ModelError: the file is damaged or may not be read.
    """
    if not os.path.lexists(file):
        return 0, []
    with reading(file, ModelError, CURE), safe_open(file, framework="pt") as stored:
        metadata = stored.metadata() or {}
        if metadata.get("digest") != digest:
            return 0, []
        step, rows = int(metadata["step"]), json.loads(metadata["rows"])
        _restore(stored, params, optimizers)
    return step, rows


def _restore(stored: Any, params: Mapping[str, Tensor], optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Copy the tensors of an open checkpoint, by the names of `save_checkpoint`, into weights and optimizers."""
    with torch.no_grad():
        for name, param in params.items():
            param.copy_(shard_like(param, stored.get_tensor(f"param.{name}")))
    states: list[dict] = [{} for _ in optimizers]
    for name in stored.keys():  # noqa: SIM118 (safe_open is not a mapping)
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            number, place, key = rest.split(".")
            states[int(number)].setdefault(int(place), {})[key] = stored.get_tensor(name)
    for optimizer, state in zip(optimizers, states, strict=True):
        trained = [param for group in optimizer.param_groups for param in group["params"]]
        for place, values in state.items():
            for key, value in values.items():
                if value.shape == trained[place].shape:  # AdamW's step is a number
                    values[key] = shard_like(trained[place], value)
    for optimizer, state in zip(optimizers, states, strict=True):
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    torch.set_rng_state(stored.get_tensor("rng.torch"))


def drop_checkpoint(out: Path) -> None:
    """Remove the checkpoint of a training whose result and rows are written."""
    shutil.rmtree(_checkpoint_folder(out), ignore_errors=True)


def save_model(model: nn.Module, out: Path, tokenizer: Any | None = None, dtype: torch.dtype | None = None) -> None:
    """Write a model folder in Hugging Face's format; an earlier one is replaced.

    Args:
        model: a model of transformers, sharded or not.
        out: the folder.
        tokenizer: saved beside the model.
        dtype: of the saved weights; None keeps the model's.

    Raises:
        ModelError: a weight is not finite; nothing is written.
    """
    weights = {name: full_tensor(param.detach()).to("cpu", dtype) for name, param in model.named_parameters()}
    require_finite(weights.items(), f"the trained model {out.name}", DIVERGED)
    if rank_and_world_size()[0]:
        return

    def write(folder: Path) -> None:
        model.save_pretrained(folder, state_dict=weights)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    atomically(out, write, _temporary(out))


def save_gate_sets(out: Path, sets: Mapping[str, nn.ModuleList]) -> None:
    """Write gate sets (name -> one gate per layer), sharded or not, into one safetensors file.

    Raises ModelError if a weight is not finite; nothing is written then.
    """
    unsharded = {name: [_unsharded(gate) for gate in gates] for name, gates in sets.items()}
    for name, gates in unsharded.items():
        for layer, gate in enumerate(gates):
            require_finite(gate.named_parameters(), f"the trained gate set {name}, layer {layer}", DIVERGED)
    if rank_and_world_size()[0]:
        return
    atomically(out, lambda part: save_gates(part, unsharded), _temporary(out))


def _unsharded(gate: Any) -> Any:
    """Return a copy of a gate on the CPU. If it is sharded, all processes must call this."""
    # The class of a sharded gate is one of FSDP's, below ours.
    make: Any = DecodeGate if isinstance(gate, DecodeGate) else AttnGate
    copy = make(gate.config, gate.q_heads, gate.wk.shape[0], gate.head_dim)
    copy.load_state_dict({key: full_tensor(value).cpu() for key, value in gate.state_dict().items()})
    return copy
