"""A dry run of the graph as a script: the steps in order, those whose outputs are there left out."""

import os
import subprocess
import sys

import pytest

from seerbench.results import ROOT

sys.path.insert(0, str(ROOT / "workflow"))
from as_script import script

PRINTED = """rule corpus:
    output: {folder}/tokens.parquet, {folder}/tokenizer.json
    log: logs/corpus.log
Shell command: seerbench list --artefacts 2> logs/corpus.log
rule train:
    input: {folder}/tokens.parquet
    output: {folder}/model
Shell command: seerbench list 2> logs/train.log
"""


def test_done_steps_are_left_out_and_the_others_run_in_order(tmp_path):
    file = tmp_path / "run.py"
    file.write_text(script(PRINTED.format(folder=tmp_path)))

    def ran():
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, str(file)], capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stderr
        return [line for line in done.stdout.splitlines() if line.startswith("list")]

    assert ran() == ["list --artefacts", "list"]
    (tmp_path / "tokens.parquet").touch()
    (tmp_path / "tokenizer.json").touch()
    assert ran() == ["list"]


def test_a_print_without_steps_is_refused():
    with pytest.raises(ValueError, match="no seerbench step"):
        script("Nothing to be done.")
