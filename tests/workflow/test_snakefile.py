"""Dry runs of the graph: the settings that it refuses, and the jobs and resources that it plans."""

import os
import re
import subprocess
import sys

import pytest

from seerbench.paths import ROOT

SMOKE = f"preset={ROOT / 'tests' / 'smoke.yaml'}"


def plan(folder, *config, target="figures", options=()):
    """Return the output of a dry run."""
    environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    command = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder), "--cores", "2"]
    done = subprocess.run(
        [*command, "--nolock", "--dry-run", *options, "--config", *config, "--", target],
        capture_output=True,
        text=True,
        env=environment,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(("key", "nearest"), [("presett", "preset"), ("result", "results")])
def test_an_unknown_config_key_is_refused_with_the_nearest(tmp_path, key, nearest):
    code, said = plan(tmp_path, f"{key}=gpu")
    assert code != 0
    assert f"--config {key}: unknown key; did you mean {nearest!r}?" in said


def test_rules_show_what_they_read(tmp_path):
    code, said = plan(tmp_path, SMOKE, target="results/fresh/smoke/perplexity/yarn.parquet")
    assert code == 0, said[-2000:]
    (inputs,) = re.findall(r"rule perplexity:\n    input: (.*)", said)
    run = "results/fresh/smoke"
    assert inputs.split(", ") == [
        f"{run}/corpora/toy/tokens.parquet",
        f"{run}/models/yarn/config.json",
        f"{run}/models/joint-0.5/config.json",
        f"{run}/gates/post.safetensors",
        f"{run}/models/joint-0.5/gates.safetensors",
    ]
    assert "seerbench corpus" not in said or said.count("rule corpus:") == 1


def test_a_step_asks_for_one_gpu_and_a_timing_for_all(tmp_path):
    code, said = plan(
        tmp_path,
        "preset=gpu",
        "plan_for_gpu=1",
        target="rows",
        options=("--resources", "gpu=4", "--forceall"),
    )
    assert code == 0, said[-2000:]
    gpus = {
        rule: set(re.findall(r"gpu=(\d+)", text))
        for rule, text in re.findall(r"rule (distill|perplexity|latency):\n((?:    .*\n)+)", said)
    }
    assert gpus == {"distill": {"1"}, "perplexity": {"1"}, "latency": {"4"}}


def test_a_machine_without_a_gpu_draws_the_published_run(tmp_path):
    code, said = plan(tmp_path, "preset=gpu")
    assert code == 0, said[-2000:]
    assert "rule distill:" not in said
