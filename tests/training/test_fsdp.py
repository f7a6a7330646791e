"""Test that two processes with sharded weights train as one does, and that one continues after two were killed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_jobs import ADAM, distill_job, finetune_job, gate_weights

from seerbench.errors import ConfigError
from seerbench.models.sources import load
from seerbench.training import distill, finetune, fsdp


@pytest.fixture(scope="module")
def two(world, tmp_path_factory):
    """Run two_processes.py under torchrun; return the folder with the models, the gates and the rows."""
    folder = tmp_path_factory.mktemp("two")
    script = Path(__file__).with_name("two_processes.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, script, world, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("died") == 2
    return folder


@pytest.mark.slow(seconds=15)
def test_two_processes_do_what_one_does(world, two, tmp_path, monkeypatch):
    one, killed = tmp_path / "one", two / "killed"
    rows = json.loads((two / "gates.json").read_text())
    for ours, theirs in zip(distill.distill(distill_job(world, one)), rows, strict=True):
        assert (ours["recipe"], ours["step"]) == (theirs["recipe"], theirs["step"])
        assert ours["gate_loss"] == pytest.approx(theirs["gate_loss"], rel=1e-6)
    assert not killed.exists()
    steps, original = [], distill.accumulate_gradients
    monkeypatch.setattr(distill, "accumulate_gradients", lambda *given: (steps.append(1), original(*given))[1])
    distill.distill(distill_job(world, killed, checkpoint_seconds=-1))
    assert len(steps) == 2  # One process performs the last two of four steps.
    for name in ("v1", "v2", "untrained"):
        assert torch.allclose(gate_weights(two / "gates", name), gate_weights(one, name), atol=1e-6)
        assert torch.allclose(gate_weights(killed, name), gate_weights(one, name), atol=1e-6)


def test_two_processes_fine_tune_as_one_does(world, two, tmp_path):
    """Shard all weights, recompute activations, and compare losses and models with those of one process."""
    one = tmp_path / "one"
    changes = {**ADAM, "batch": 2, "steps": 3, "recompute": True}
    ours = finetune.finetune(finetune_job(world, one, two / "gates", **changes))
    for row, theirs in zip(ours, json.loads((two / "joint.json").read_text()), strict=True):
        assert row["lm_loss"] == pytest.approx(theirs["lm_loss"], rel=1e-4)
        assert row["gate_loss"] == pytest.approx(theirs["gate_loss"], rel=1e-4)
    for first, second in zip(load(one).parameters(), load(two / "joint").parameters(), strict=True):
        # Adam turns the sign of a vanishing gradient into an update. In each of the three steps, some weights may
        # therefore differ by two learning rates; most weights agree.
        assert (first - second).abs().max() < 2 * 3 * ADAM["optimizer"].adam_lr
        assert (first - second).abs().mean() < 0.05 * ADAM["optimizer"].adam_lr
    trained = [gate_weights(folder / "gates.safetensors", "v1") for folder in (one, two / "joint")]
    assert torch.allclose(*trained, atol=1e-3)


def test_a_batch_that_does_not_split_is_refused(world, tmp_path, monkeypatch):
    monkeypatch.setattr(fsdp, "rank_and_world_size", lambda: (0, 3))
    with pytest.raises(ConfigError, match="batch of 2 windows"):
        distill.distill(distill_job(world, tmp_path / "gates"))


def test_alone_nothing_is_sharded():
    tensor = torch.ones(3)
    with fsdp.processes("cpu") as device:
        assert device == "cpu"
    assert fsdp.rank_and_world_size() == (0, 1)
    assert fsdp.full_tensor(tensor) is tensor is fsdp.shard_like(tensor, tensor)
    assert fsdp.all_reduce_mean(tensor) is tensor
    assert fsdp.broadcast_from_rank0(True)
