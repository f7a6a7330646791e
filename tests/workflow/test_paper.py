"""The paper preset runs end to end on stand-ins: every rule runs and every artefact is drawn."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import paper_smoke
import pytest
import yaml

from seerbench import artefacts
from seerbench.artefacts import ARTEFACTS
from seerbench.data import longbench
from seerbench.errors import ConfigError
from seerbench.paths import PAPER, ROOT
from seerbench.presets.load import load_preset
from seerbench.rows.store import Run

# The paper preset has no rows for these: its tasks are LongBench-E, its gates have one budget, no experiment scores
# the same tokens with shorter contexts, and no sweep or experiment decodes by a method.
BEYOND_THE_PRESET = ("dilution", "budget", "context_use", "needle", "ruler", "decode", "decode_quality")


def snakemake(environment, folder, preset, *arguments):
    """Measure every row of a preset, or plan to, and return what Snakemake said."""
    command = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder), "--cores", "2"]
    done = subprocess.run(
        [*command, "--nolock", "--config", f"preset={preset}", *arguments, "--", "rows"],
        capture_output=True,
        text=True,
        env=environment,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    return said


def rules_in(said):
    """Return the rules in Snakemake's table of jobs."""
    table = said[said.index("Job stats:") :]
    return set(re.findall(r"^(\w+) +\d+$", table[: table.index("total")], re.MULTILINE))


@pytest.mark.slow(seconds=70)
@pytest.mark.timeout(900)
def test_the_paper_preset_runs_on_stand_ins(tmp_path, warm):
    preset = paper_smoke.write(tmp_path)
    said = snakemake(warm, tmp_path, preset, "--printshellcmds")  # in its own words, which have a table of jobs

    everywhere = snakemake(warm, tmp_path, "paper", "plan_for_gpu=1", "--forceall", "--dry-run")
    assert rules_in(said) == rules_in(everywhere) >= {"distill", "import_gates", "finetune_jointly", "tasks"}

    run = Run(tmp_path / "results" / "fresh" / "paper-smoke")
    assert run.table("runs").scale.str.contains("test scale").all()
    for name, about in ARTEFACTS.items():  # in this process: the graph's own way to draw is tested in test_dag.py
        if name in BEYOND_THE_PRESET:
            continue
        files = artefacts.make(name, run.folder, PAPER, tmp_path / "figures")
        assert {path.suffix for path in files if path.stat().st_size > 100} == set(about.suffixes)
        frame = pd.read_csv(tmp_path / "figures" / f"{name}.csv")
        assert (frame.source == "measured").any(), f"{name} has no measured series"

    tasks = run.table("tasks")
    assert set(tasks.task) == set(longbench.TASKS)
    assert set(tasks.bucket) == {"0-4k", "4-8k", "8k+"}
    assert tasks.score.between(0, 1).all()
    assert tasks["cut"].any()
    assert not tasks["cut"].all()
    assert (tasks.definition == longbench.VERSION).all()

    # All experiments have the same least length: the short book is in none of them, the others are in all.
    perplexity = run.table("perplexity")
    assert set(perplexity[perplexity.corpus == "pg19"].document.str[-1]) == {"0", "1", "3"}
    assert np.isfinite(perplexity.nll[perplexity.status == "measured"]).all()


def test_the_derived_preset_keeps_everything_but_sizes():
    paper = yaml.safe_load((ROOT / "config" / "paper.yaml").read_text())
    small = paper_smoke.derived(paper, Path("data"))
    for section in ("corpora", "models", "tokenizer"):
        assert small[section] == paper[section]
    for section in ("gates", "perplexity", "tasks", "recall"):
        assert list(small[section]) == list(paper[section])
        for name, about in paper[section].items():
            arms = [arm["method"] for arm in about.get("arms", [])]
            assert [arm["method"] for arm in small[section][name].get("arms", [])] == arms
    assert list(small["latency"]["sweeps"]) == list(paper["latency"]["sweeps"])
    with pytest.raises(KeyError):
        paper_smoke.derived({"context": 12345}, Path("data"))


def test_the_paper_preset_makes_every_artefact_and_names_its_revisions():
    preset = load_preset("paper")
    for name, about in ARTEFACTS.items():
        if name in BEYOND_THE_PRESET:
            continue
        assert preset.rows_for(about.needs)[1] == [], name
    file = preset.file
    for source in (*file.models.values(), file.tokenizer, file.tasks["longbench"], *file.corpora.values()):
        assert re.fullmatch(r"[0-9a-f]{40}", source.revision)


def test_without_a_gpu_the_paper_preset_says_what_it_needs(monkeypatch):
    from seerbench.presets import preset as presets_preset

    monkeypatch.setattr(presets_preset, "has_gpu", lambda: False)
    with pytest.raises(ConfigError, match="measures on an NVIDIA GPU, this machine has none"):
        load_preset("paper").artefact_run()


def test_without_data_and_network_a_step_says_what_to_type(tmp_path, installed):
    done = subprocess.run(
        ["seerbench", "tokenizer", "paper", "--results", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=installed | {"HF_HOME": str(tmp_path / "cache")},
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "hf download meta-llama/Llama-3.1-8B" in done.stderr
