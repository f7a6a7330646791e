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


def in_two_processes(training, *paths):
    """Run two_processes.py under torchrun; return what it printed."""
    script = Path(__file__).with_name("two_processes.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, script, training, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_two_processes_do_what_one_does(world, tmp_path, monkeypatch):
    one, two, killed = tmp_path / "one", tmp_path / "two", tmp_path / "killed"
    assert in_two_processes("distill", world, two, killed).count("died") == 2
    rows = json.loads((tmp_path / "two.json").read_text())
    for ours, theirs in zip(distill.distill(distill_job(world, one)), rows, strict=True):
        assert (ours["recipe"], ours["step"]) == (theirs["recipe"], theirs["step"])
        assert ours["gate_loss"] == pytest.approx(theirs["gate_loss"], rel=1e-6)
    assert not killed.exists()
    steps, original = [], distill.accumulate_gradients
    monkeypatch.setattr(distill, "accumulate_gradients", lambda *given: (steps.append(1), original(*given))[1])
    distill.distill(distill_job(world, killed, checkpoint_seconds=-1))
    assert len(steps) == 2  # One process performs the last two of four steps.
    for name in ("v1", "v2", "untrained"):
        assert torch.allclose(gate_weights(two, name), gate_weights(one, name), atol=1e-6)
        assert torch.allclose(gate_weights(killed, name), gate_weights(one, name), atol=1e-6)


@pytest.mark.slow
def test_two_processes_fine_tune_as_one_does(world, tmp_path):
    """Shard all weights, recompute activations, and compare losses and models with those of one process."""
    one, two, gates = tmp_path / "one", tmp_path / "two", tmp_path / "gates"
    distill.distill(distill_job(world, gates))
    in_two_processes("finetune", world, two, gates)
    changes = {**ADAM, "batch": 2, "steps": 3, "recompute": True}
    rows = json.loads((tmp_path / "two.json").read_text())
    for ours, theirs in zip(finetune.finetune(finetune_job(world, one, gates, **changes)), rows, strict=True):
        assert ours["lm_loss"] == pytest.approx(theirs["lm_loss"], rel=1e-4)
        assert ours["gate_loss"] == pytest.approx(theirs["gate_loss"], rel=1e-4)
    for ours, theirs in zip(load(one).parameters(), load(two).parameters(), strict=True):
        # Adam turns the sign of a vanishing gradient into an update. In each of the three steps, some weights may
        # therefore differ by two learning rates; most weights agree.
        assert (ours - theirs).abs().max() < 2 * 3 * ADAM["optimizer"].adam_lr
        assert (ours - theirs).abs().mean() < 0.05 * ADAM["optimizer"].adam_lr
    trained = [gate_weights(folder / "gates.safetensors", "v1") for folder in (one, two)]
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
