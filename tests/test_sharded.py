"""Two processes with sharded weights train the gates that one trains; one goes on where two have died."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_distill import GATES, run_distill, weights, world  # noqa: F401 (world is a fixture)

from seerbench import distill, sharded


@pytest.mark.slow
def test_two_processes_do_what_one_does(world, tmp_path, monkeypatch):  # noqa: F811
    (world / "job.json").write_text(json.dumps(GATES))
    script = Path(__file__).with_name("two_processes.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    two, cut = tmp_path / "two", tmp_path / "cut"
    done = subprocess.run([*torchrun, world, two, cut], capture_output=True, text=True, check=False)
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


def test_a_batch_that_does_not_split_is_refused(world, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("seerbench.distill.rank_of", lambda: (0, 3))
    with pytest.raises(ValueError, match="batch of 2 windows does not split over 3 processes"):
        run_distill(world, tmp_path / "gates")


def test_alone_nothing_is_sharded():
    tensor = torch.ones(3)
    with sharded.processes("cpu") as device:
        assert device == "cpu"
    assert sharded.rank_of() == (0, 1)
    assert sharded.whole(tensor) is tensor is sharded.like(tensor, tensor)
    assert sharded.mean(tensor) is tensor
    assert sharded.agreed(True)
