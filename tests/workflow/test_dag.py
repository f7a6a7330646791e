"""The whole graph on a toy preset resumes after a SIGKILL, draws every artefact, and then has no job left.

It runs in a copy of the tree with a part of the published runs, which the report and the notebooks read beside the
graph's own: tests/report reads all of them.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from warm_start import warm_start

from seerbench.artefacts import ARTEFACTS
from seerbench.paths import PUBLISHED, ROOT
from seerbench.presets.load import load_preset
from seerbench.rows.store import Run
from seerbench.training.checkpoint import checkpoint_file

# Artefacts whose rows would need more trainings than the test has time for, or longer prompts than its models take.
# They are drawn from made-up rows in tests/artefacts.
BEYOND_THE_PRESET = {"budget", "context_use", "decode", "decode_quality", "needle", "ruler"}
KEPT = {"cpu-xeon-2-cores", "h100-speed"}  # of results/published: one has quality, the other is from a GPU


def copy_of_the_tree(folder):
    """Return a copy of what the graph reads, with the published runs KEPT alone."""
    tree, generated = folder / "tree", shutil.ignore_patterns(".*", "__pycache__", "fresh", "logs", "*.egg-info")

    def leave(parent, names):
        return generated(parent, names) | (set(names) - KEPT if Path(parent) == PUBLISHED else set())

    shutil.copytree(ROOT, tree, symlinks=True, ignore=leave)
    return tree


def snakemake(tree, folder, *arguments):
    return [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(tree / "Snakefile"),
        "--directory",
        str(folder),
        "--cores",
        "2",
        "--nolock",
        "--config",
        f"preset={tree / 'tests' / 'smoke.yaml'}",
        *arguments,
    ]


def measured_artefacts():
    """Return name -> entry of the artefacts whose rows the preset measures."""
    preset = load_preset(str(ROOT / "tests" / "smoke.yaml"))
    measured = {name: about for name, about in ARTEFACTS.items() if not preset.rows_for(about.needs)[1]}
    assert set(ARTEFACTS) - set(measured) == BEYOND_THE_PRESET
    return measured


def kill_with_a_checkpoint(whole, step, name, checkpoint):
    """Kill the graph and the step with SIGKILL as soon as the step has written a checkpoint."""
    deadline = time.monotonic() + 480
    while time.monotonic() < deadline and whole.poll() is None:
        family = psutil.Process(whole.pid).children(recursive=True)
        for process in family:
            try:
                line = process.cmdline()
            except psutil.NoSuchProcess:
                continue
            if any(part.endswith("seerbench") for part in line) and step in line and name in line:
                if not checkpoint.exists():
                    continue
                for each in [psutil.Process(whole.pid), *family]:
                    if each.is_running():
                        os.kill(each.pid, signal.SIGKILL)
                whole.wait()
                return
        time.sleep(0.05)
    pytest.fail(f"{step} {name} wrote no checkpoint")


@pytest.mark.slow(seconds=120)
@pytest.mark.timeout(900)
def test_the_graph_from_nothing_through_a_kill_to_every_artefact(tmp_path, installed):
    tree = copy_of_the_tree(tmp_path)
    with warm_start(installed | {"PYTHONPATH": str(tree)}) as environment:
        the_graph_through_a_kill(tree, tmp_path, environment)
        a_context_that_no_document_reaches_is_one_line(tmp_path, environment)


def the_graph_through_a_kill(tree, tmp_path, environment):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    whole = subprocess.Popen(snakemake(tree, tmp_path, "--quiet", "all", "--", "figures"), **quiet)
    run = tmp_path / "results" / "fresh" / "smoke"
    kill_with_a_checkpoint(whole, "distill", "pooling", checkpoint_file(run / "gates" / "pooling.safetensors"))
    assert not (run / "gates" / "pooling.safetensors").exists()
    done = {path: path.stat().st_mtime_ns for path in run.rglob("*.parquet")}
    assert run / "training" / "pretrain-long.parquet" in done

    command = snakemake(tree, tmp_path, "--quiet", "rules", "--", "figures")
    again = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    redone = [path for path, stamp in done.items() if path.stat().st_mtime_ns != stamp]
    assert redone == []
    assert (run / "gates" / "pooling.safetensors").exists()

    runs = Run(run).table("runs")
    assert runs.step.is_unique  # no finished step ran twice
    assert (runs.seed == 0).all()
    assert runs.scale.str.contains("test scale").all()
    assert runs.corpus_sha256.notna().sum() >= 10
    drawn = measured_artefacts()
    for name, about in drawn.items():
        for suffix in about.suffixes:
            path = tmp_path / "figures" / "smoke" / f"{name}{suffix}"
            assert path.stat().st_size > 100, path
        frame = pd.read_csv(tmp_path / "figures" / "smoke" / f"{name}.csv")
        assert (frame.source == "measured").any(), f"{name} has no measured series"

    report = (tmp_path / "figures" / "smoke" / "report.html").read_text()
    assert report.count("<img ") == sum(about.kind == "figure" for about in drawn.values())
    # Every other artefact has its rows.
    assert report.count('class="missing"') == len(ARTEFACTS) - len(drawn) == len(BEYOND_THE_PRESET)
    for notebook in ("results", "kernels", "gates"):
        page = (tmp_path / "figures" / "smoke" / f"{notebook}.html").read_text()
        assert "test scale" in page, f"{notebook} does not show the run that it was executed for"

    command = snakemake(tree, tmp_path, "--dry-run", "--", "figures")
    idle = subprocess.run(command, capture_output=True, text=True, env=environment)
    said = idle.stdout + idle.stderr
    assert "Nothing to be done" in said
    assert "profile profiles/default" in said  # one GPU job at a time; a killed job's whole files are complete


def a_context_that_no_document_reaches_is_one_line(folder, environment):
    """Expect one line of error; the finished run is used, since its corpus tells the longest document."""
    preset = yaml.safe_load((ROOT / "tests" / "smoke.yaml").read_text())
    preset["recall"]["gates"]["contexts"] = [4_000_000]
    (folder / "far.yaml").write_text(yaml.safe_dump(preset))
    rows = folder / "results" / "fresh" / "smoke" / "recall" / "gates.parquet"
    before = rows.read_bytes()
    done = subprocess.run(
        ["seerbench", "recall", "far.yaml", "gates"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "seerbench: no document reaches a context of 4000000 tokens: the longest has" in done.stderr
    assert "Traceback" not in done.stderr
    assert rows.read_bytes() == before
