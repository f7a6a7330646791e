"""What the graph refuses, plans and says, in dry runs and with a stand-in for the steps."""

import os
import re
import subprocess
import sys

import pytest

from seerbench.paths import ROOT

SMOKE = f"preset={ROOT / 'tests' / 'smoke.yaml'}"


def plan(environment, folder, *config, target="figures", options=()):
    """Return the exit code and the output of a dry run."""
    command = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder), "--cores", "2"]
    done = subprocess.run(
        [*command, "--nolock", "--dry-run", *options, "--config", *config, "--", target],
        capture_output=True,
        text=True,
        env=environment,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(("key", "nearest"), [("presett", "preset"), ("result", "results")])
def test_an_unknown_config_key_is_refused_with_the_nearest(warm, tmp_path, key, nearest):
    code, said = plan(warm, tmp_path, f"{key}=gpu")
    assert code != 0
    assert f"--config {key}: unknown key; did you mean {nearest!r}?" in said


def test_rules_show_what_they_read(warm, tmp_path):
    code, said = plan(warm, tmp_path, SMOKE, target="results/fresh/smoke/perplexity/yarn.parquet")
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


# Stands for the driver of a machine with four GPUs.
PYNVML = """\
class NVMLError(Exception): pass
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return 4
def nvmlDeviceGetHandleByIndex(place): return place
def nvmlDeviceGetUUID(place): return f"GPU-{place}"
"""


@pytest.mark.parametrize(
    ("options", "variables", "usable"),
    [((), {}, 4), (("--resources", "gpu=2"), {"CUDA_VISIBLE_DEVICES": "0,1,3"}, 2)],
    ids=["every GPU of the machine", "as many as are given"],
)
def test_a_step_asks_for_one_gpu_and_a_timing_for_all(installed, tmp_path, options, variables, usable):
    (tmp_path / "pynvml.py").write_text(PYNVML)
    imported = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    asked = {"target": "rows", "options": ("--forceall", *options)}
    code, said = plan(installed | imported | variables, tmp_path, "preset=gpu", "plan_for_gpu=1", **asked)
    assert code == 0, said[-2000:]
    gpus = {
        rule: set(re.findall(r"gpu=(\d+)", text))
        for rule, text in re.findall(r"rule (distill|perplexity|latency):\n((?:    .*\n)+)", said)
    }
    assert gpus == {"distill": {"1"}, "perplexity": {"1"}, "latency": {str(usable)}}


def test_a_machine_without_a_gpu_draws_the_published_run(warm, tmp_path):
    code, said = plan(warm, tmp_path, "preset=gpu")
    assert code == 0, said[-2000:]
    assert "rule distill:" not in said


# Stands for the command `seerbench`: writes down its arguments, makes the files of two steps, or fails.
STEP = """\
#!{python}
import os, pathlib, sys
words = sys.argv[1:]
with open({told!r}, "a") as told:
    print(repr(words), file=told)
if os.environ.get("FAILS") == words[0]:
    sys.exit("seerbench: rows.parquet is cut short; delete it")
if words[0] == "tokenizer":
    pathlib.Path(words[words.index("--results") + 1], "smoke/tokenizer/tokenizer.json").write_text("made")
if words[0] == "draw":
    for suffix in (".svg", ".png", ".csv"):
        pathlib.Path(words[words.index("--out") + 1], words[-1] + suffix).write_text("made")
"""


@pytest.fixture
def run_graph(warm, tmp_path):
    """Return a function that runs the graph in a folder with a difficult name, with a stand-in for its steps."""
    folder, programs, told = tmp_path / "it's $HOME (1)", tmp_path / "bin", tmp_path / "told"
    folder.mkdir()
    programs.mkdir()
    (programs / "seerbench").write_text(STEP.format(python=sys.executable, told=str(told)))
    (programs / "seerbench").chmod(0o755)

    def run(*arguments, **environment):
        told.write_text("")
        done = subprocess.run(
            ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            env={**warm, "PATH": f"{programs}:{warm['PATH']}", **environment},
        )
        return done.returncode, done.stdout + done.stderr, [eval(line) for line in told.read_text().splitlines()]

    run.folder = folder
    return run


def test_a_step_gets_any_name_whole_and_runs_once_however_its_preset_is_spelled(run_graph):
    preset = run_graph.folder / "-my own & $HOME (é).yaml"
    preset.write_text((ROOT / "tests" / "smoke.yaml").read_text())
    results = "my results; (1)"
    tokens = f"{results}/smoke/corpora/toy/tokens.parquet"
    asked = ("--config", f"preset={preset.name}", f"results={results}")
    code, said, steps = run_graph(*asked, "--", tokens, FAILS="corpus")
    assert code == 1
    assert steps == [
        ["tokenizer", "--results", results, "--", str(preset)],
        ["corpus", "--results", results, "--", str(preset), "toy"],
    ]
    assert (
        "] FAILED: tokenize the corpus toy; the end of its log, logs/smoke/corpus-toy.log:\n    seerbench: rows"
        in said
    )
    assert "stopped after 1 of 2 steps" in said
    assert "Traceback" not in said
    assert "Select jobs" not in said

    made = f"{results}/smoke/tokenizer/tokenizer.json"
    code, said, _ = run_graph("--dry-run", "--config", f"preset={preset}", f"results={results}", "--", made)
    assert "Nothing to be done" in said


def test_a_figure_that_cannot_be_drawn_again_stays_as_it_was(run_graph):
    asked = ("--config", "preset=speed", "--", "figures/speed/fig6.svg")
    code, said, _ = run_graph(*asked)
    assert code == 0, said
    figures = run_graph.folder / "figures" / "speed"
    (figures / "report.html").write_text("the last good report")
    last = {path: path.stat().st_mtime_ns for path in figures.glob("fig6.*")}
    assert len(last) == 3

    code, said, _ = run_graph("--forcerun", "draw_figure", *asked, FAILS="draw")
    assert code == 1
    assert "FAILED: draw fig6" in said
    assert "delete it" in said
    assert {path: path.stat().st_mtime_ns for path in figures.glob("fig6.*")} == last
    assert (figures / "report.html").read_text() == "the last good report"

    code, said, steps = run_graph(*asked)  # the failure is not forgotten, although the files are there
    assert code == 0, said
    assert steps
    assert "1 step done" in said
    assert "open figures/speed/report.html" in said
    code, said, steps = run_graph(*asked)
    assert (code, steps) == (0, [])
    assert "nothing to do" in said
