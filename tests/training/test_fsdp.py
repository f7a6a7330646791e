"""Two processes with sharded weights train the gates that one trains; one goes on where two have died."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_distill import ADAM, run_distill, weights, world  # noqa: F401 (world is a fixture)
from tiny_jobs import finetune_job

from seerbench.models.sources import load
from seerbench.training import distill, finetune, fsdp


@pytest.mark.slow
def test_two_processes_do_what_one_does(world, tmp_path, monkeypatch):  # noqa: F811
    script = Path(__file__).with_name("two_processes.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    two, cut = tmp_path / "two", tmp_path / "cut"
    done = subprocess.run([*torchrun, "distill", world, two, cut], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("died") == 2
    one = run_distill(world, tmp_path / "one")
    rows = json.loads((world / "rows.json").read_text())
    assert [(row["recipe"], row["step"]) for row in rows] == [(row["recipe"], row["step"]) for row in one]
    for mine, other in zip(one, rows, strict=True):
        assert mine["gate_loss"] == pytest.approx(other["gate_loss"], rel=1e-6)
    assert not cut.exists()
    steps, original = [], distill._distill_step
    monkeypatch.setattr(distill, "_distill_step", lambda *given: (steps.append(1), original(*given))[1])
    run_distill(world, cut, checkpoint_seconds=-1)
    assert len(steps) == 2  # of four: one process does what the two left
    for name in ("v1", "v2", "untrained"):
        assert torch.allclose(weights(two, name), weights(tmp_path / "one", name), atol=1e-6)
        assert torch.allclose(weights(cut, name), weights(tmp_path / "one", name), atol=1e-6)


@pytest.mark.slow
def test_two_processes_fine_tune_as_one_does(world, tmp_path):  # noqa: F811
    """All weights sharded, the output embedding too, activations recomputed: losses and models of one process."""
    run_distill(world, tmp_path / "gates")
    script = Path(__file__).with_name("two_processes.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    two = tmp_path / "two"
    done = subprocess.run(
        [*torchrun, "finetune", world, tmp_path / "gates", two], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    changes = {**ADAM, "gates": tmp_path / "gates", "batch": 2, "steps": 3, "recompute": True}
    one = finetune.finetune(finetune_job(world, tmp_path / "one", **changes))
    rows = json.loads((world / "finetune-rows.json").read_text())
    for mine, other in zip(one, rows, strict=True):
        assert mine["lm_loss"] == pytest.approx(other["lm_loss"], rel=1e-4)
        assert mine["gate_loss"] == pytest.approx(other["gate_loss"], rel=1e-4)
    for mine, other in zip(load(tmp_path / "one").parameters(), load(two).parameters(), strict=True):
        # Adam turns the sign of a vanishing gradient into a step: most weights agree, none is two steps off.
        assert (mine - other).abs().max() < 2 * 3 * ADAM["optimizer"].adam_lr
        assert (mine - other).abs().mean() < 0.05 * ADAM["optimizer"].adam_lr
    assert torch.allclose(
        weights(two / "gates.safetensors", "v1"), weights(tmp_path / "one" / "gates.safetensors", "v1"), atol=1e-3
    )


def test_a_batch_that_does_not_split_is_refused(world, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("seerbench.training.distill.rank_and_world_size", lambda: (0, 3))
    with pytest.raises(ValueError, match="batch of 2 windows does not split over 3 processes"):
        run_distill(world, tmp_path / "gates")


def test_alone_nothing_is_sharded():
    tensor = torch.ones(3)
    with fsdp.processes("cpu") as device:
        assert device == "cpu"
    assert fsdp.rank_and_world_size() == (0, 1)
    assert fsdp.full_tensor(tensor) is tensor is fsdp.shard_like(tensor, tensor)
    assert fsdp.all_reduce_mean(tensor) is tensor
    assert fsdp.broadcast_from_rank0(True)
