"""The cluster profiles are understood by Snakemake and their executor plugins (tests/slurm runs one for real)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from seerbench.results import ROOT

PROFILES = sorted(path.parent for path in (ROOT / "workflow" / "profiles").glob("*/profile.yaml"))
RULES = {
    line.split()[1].rstrip(":")
    for path in (ROOT / "workflow" / "rules").glob("*.smk")
    for line in path.read_text().splitlines()
    if line.startswith("rule ")
} | {"finetune_jointly"}


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.name)
def test_a_profile_plans_the_graph(profile, tmp_path):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [
            *("snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(tmp_path), "--cores", "2"),
            *("--workflow-profile", str(profile), "--config", f"preset={ROOT / 'tests' / 'smoke.yaml'}"),
            *("--dry-run", "--", "figures"),
        ],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "distill" in done.stdout + done.stderr


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.name)
def test_a_profile_speaks_of_rules_that_are_there(profile):
    about = yaml.safe_load((profile / "profile.yaml").read_text())
    assert {*about.get("set-threads", {}), *about.get("set-resources", {})} <= RULES


def test_on_a_cluster_a_timing_has_its_node_to_itself():
    slurm = yaml.safe_load((ROOT / "workflow" / "profiles" / "slurm" / "profile.yaml").read_text())
    for rule in ("latency", "compare_one"):
        assert "--exclusive" in slurm["set-resources"][rule]["slurm_extra"]
