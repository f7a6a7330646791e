"""checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from seerbench.training.fsdp import full_tensor, rank_and_world_size, shard_like


def digest_of(*parts: object) -> str:
    """Identity of a training run: a checkpoint of another config, corpus or seed is not continued."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def save_checkpoint(
    file: Path,
    params: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    digest: str,
    step: int,
    rows: list[dict],
) -> None:
    """Write everything that a run needs to continue into one safetensors file, whole or not at all.

    Of several processes (sharded.py) all call this and the first writes.

    Args:
        params: name -> trained tensor (`dict(model.named_parameters())`, or only the gates').
        digest: from `digest_of`.
        step: steps done. Batches are functions of (seed, step), so this is also the data's RNG state.
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
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(file.name + ".tmp")
    save_file(tensors, temporary, metadata={"digest": digest, "step": str(step), "rows": json.dumps(rows)})
    os.replace(temporary, file)


def load_checkpoint(
    file: Path,
    params: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    digest: str,
) -> tuple[int, list[dict]]:
    """Put a checkpoint back into params and optimizers; returns steps done and the rows so far.

    Without a file, or with one of another run (digest), nothing changes and the answer is (0, []).
    """
    if not file.is_file():
        return 0, []
    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata() or {}
        if metadata.get("digest") != digest:
            return 0, []
        with torch.no_grad():
            for name, param in params.items():
                param.copy_(shard_like(param, stored.get_tensor(f"param.{name}")))
        states: list[dict] = [{} for _ in optimizers]
        for name in stored.keys():  # noqa: SIM118 (safe_open is no mapping)
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                number, param, key = rest.split(".")
                states[int(number)].setdefault(int(param), {})[key] = stored.get_tensor(name)
        for optimizer, state in zip(optimizers, states, strict=True):
            trained = [param for group in optimizer.param_groups for param in group["params"]]
            for place, values in state.items():
                for key, value in values.items():
                    if value.shape == trained[place].shape:  # its `step` is a number
                        values[key] = shard_like(trained[place], value)
        for optimizer, state in zip(optimizers, states, strict=True):
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        torch.set_rng_state(stored.get_tensor("rng.torch"))
    return int(metadata["step"]), json.loads(metadata["rows"])


def drop_checkpoint(out: Path) -> None:
    """Remove the checkpoint of a training whose results and rows are all written."""
    shutil.rmtree(out.with_name(out.name + ".checkpoint"), ignore_errors=True)


def save_model(
    model: nn.Module, out: Path, tokenizer: object | None = None, dtype: torch.dtype | None = None
) -> None:
    """save_pretrained into a folder that appears whole or not at all (an earlier one is replaced).

    dtype: of the weights in the folder; None keeps the model's. Of several processes all call this and one writes.
    """
    weights = {name: full_tensor(param.detach()).to("cpu", dtype) for name, param in model.named_parameters()}
    if rank_and_world_size()[0]:
        return
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary, state_dict=weights)
    if tokenizer is not None:
        tokenizer.save_pretrained(temporary)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(temporary, out)
