"""One graph at a time runs in a folder, and the lock ends with its process."""

import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from seerbench.errors import GraphError
from seerbench.graph.lock import LockAtStart, hold_folder
from seerbench.paths import ROOT

# A shell starts its background jobs with SIGINT ignored, and they pass that on.
HOLD = "import signal, sys, time; sys.path.insert(0, {root!r}); from pathlib import Path; \
signal.signal(signal.SIGINT, signal.default_int_handler); \
from seerbench.graph.lock import hold_folder; kept = hold_folder(Path()); print('held', flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", HOLD.format(root=str(ROOT)), "--config", "preset=x y.yaml"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_graph_is_refused_in_one_line_that_names_the_first(tmp_path, holder):
    with pytest.raises(GraphError) as refused:
        hold_folder(tmp_path)
    said = str(refused.value)
    assert f"process {holder.pid} on" in said
    assert "'preset=x y.yaml'" in said
    assert "\n" not in said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_lock_ends_with_its_process(tmp_path, holder, number):
    os.kill(holder.pid, number)
    holder.wait()
    for _ in range(2):
        held = hold_folder(tmp_path)
        assert held is not None
        held.close()


def test_a_step_does_not_inherit_the_lock(tmp_path):
    held = hold_folder(tmp_path)
    step = subprocess.Popen(["sleep", "60"], close_fds=False)
    held.close()
    hold_folder(tmp_path).close()
    step.kill()
    step.wait()


def test_other_folders_are_free(tmp_path):
    for name in ("a folder (1)", "d'e", "$HOME", "-x", "été"):
        (tmp_path / name).mkdir()
    held = [hold_folder(path) for path in tmp_path.iterdir()]
    assert len(held) == 5
    for each in held:
        each.close()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / ".snakemake").write_text("a file")
    with pytest.raises(GraphError, match="a file is in the place of a folder"):
        hold_folder(tmp_path)


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert hold_folder(tmp_path) is None


def test_the_lock_is_taken_when_a_graph_starts_and_not_to_plan(tmp_path):
    lock = LockAtStart(tmp_path)
    record = logging.LogRecord("snakemake", logging.INFO, "", 0, "planning", None, None)
    assert lock.filter(record)
    assert lock.held is None
    record.event = "workflow_started"
    start = time.monotonic()
    assert lock.filter(record)
    assert time.monotonic() - start < 5
    with pytest.raises(GraphError):
        LockAtStart(tmp_path).filter(record)
    lock.held.close()
