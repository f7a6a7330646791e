"""A dry run of the graph as a script: the steps in order, those done left out, shared by several workers."""

import subprocess
import sys

import pytest

from seerbench.paths import ROOT

sys.path.insert(0, str(ROOT / "workflow"))
from as_script import script

PRINTED = """rule corpus:
    output: tokens.parquet, tokenizer.json
    log: logs/corpus.log
Shell command: seerbench tokens.parquet tokenizer.json 2> logs/corpus.log
rule train:
    input: tokens.parquet
    output: model-a
Shell command: seerbench model-a 2> logs/train.log
rule train:
    input: tokens.parquet
    output: model-b
Shell command: seerbench model-b 2> logs/train.log
rule draw:
    input: model-a, model-b
    output: figure
Shell command: seerbench figure 2> logs/draw.log
"""
# Stands for the command line: a step that writes the files it is called with, and says so.
COMMAND = """
import time
from pathlib import Path

def app(arguments, standalone_mode):
    with open("ran", "a") as log:
        log.write(" ".join(arguments) + "\\n")
    time.sleep(0.3)
    if "model-b" in arguments and Path("full").exists():
        raise MemoryError("the GPU is full")
    for name in arguments:
        Path(name).touch()
"""


@pytest.fixture
def start(tmp_path):
    """Starts the script of a dry run; the steps that any worker ran stand in `ran`."""
    (tmp_path / "seerbench").mkdir()
    (tmp_path / "seerbench/__init__.py").touch()
    (tmp_path / "seerbench/cli.py").write_text(COMMAND)
    (tmp_path / "ran").touch()

    def run(printed=PRINTED):
        file = tmp_path / "run.py"
        file.write_text(script(printed))
        return subprocess.Popen([sys.executable, str(file)], cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    return run


def test_done_steps_are_left_out_and_the_others_run_in_order(start, tmp_path):
    for name in ("tokens.parquet", "tokenizer.json", "model-b"):
        (tmp_path / name).touch()
    assert start().wait() == 0
    assert (tmp_path / "ran").read_text().splitlines() == ["model-a", "figure"]


def test_two_workers_share_the_steps_and_run_none_twice(start, tmp_path):
    workers = [start(), start()]
    assert [worker.wait() for worker in workers] == [0, 0]
    ran = (tmp_path / "ran").read_text().splitlines()
    assert (ran[0], ran[-1]) == ("tokens.parquet tokenizer.json", "figure")
    assert sorted(ran[1:3]) == ["model-a", "model-b"]
    assert len(ran) == 4


def test_a_step_that_writes_nothing_or_waits_for_nobody_ends_the_script(start):
    silent = start("rule train:\n    output: model\nShell command: seerbench other 2> log\n")
    assert "ended without model" in silent.communicate()[1]
    orphan = start("rule train:\n    input: tokens\n    output: model\nShell command: seerbench model 2> log\n")
    assert "wait for: model" in orphan.communicate()[1]
    assert silent.returncode
    assert orphan.returncode


def test_a_step_that_fails_is_named_and_the_others_go_on(start, tmp_path):
    (tmp_path / "full").touch()
    worker = start(PRINTED.replace("input: model-a, model-b", "input: model-a"))
    errors = worker.communicate()[1]
    assert "MemoryError: the GPU is full" in errors
    assert errors.splitlines()[-1] == "failed: model-b"
    assert worker.returncode == 1
    assert (tmp_path / "ran").read_text().splitlines()[1:] == ["model-a", "model-b", "figure"]
    (tmp_path / "full").unlink()
    assert start().wait() == 0  # started again it is tried again, and nothing else
    assert (tmp_path / "ran").read_text().splitlines()[4:] == ["model-b"]


def test_a_print_without_steps_is_refused():
    with pytest.raises(ValueError, match="no seerbench step"):
        script("Nothing to be done.")
