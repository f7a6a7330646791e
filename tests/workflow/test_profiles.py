"""Snakemake and its executor plugins accept the cluster profiles; the Kubernetes profile runs on a toy kubectl.

tests/workflow/slurm runs the Slurm profile on real daemons. Without a Kubernetes cluster, a stand-in for kubectl
runs the manifests of the profile on this machine.
"""

import os
import subprocess
import sys

import pytest
import yaml

from seerbench.paths import ROOT

PROFILES = sorted(path.parent for path in (ROOT / "workflow" / "profiles").glob("*/profile.yaml"))
RULES = {
    line.split()[1].rstrip(":")
    for path in (ROOT / "workflow" / "rules").glob("*.smk")
    for line in path.read_text().splitlines()
    if line.startswith("rule ")
} | {"finetune_jointly"}

# Stands for the command `seerbench`: makes the files of the two steps, as `touch` would.
STEP = """\
#!/bin/sh
cd results/fresh/smoke
case "$1" in
tokenizer) > tokenizer/tokenizer.json ;;
corpus) > corpora/toy/tokens.parquet; > corpora/toy/tokens.json ;;
esac
"""
KUBECTL = """\
#!{python}
# create: keep the manifest, run its container's command here. get: say how that went.
import json, pathlib, subprocess, sys, yaml
folder = pathlib.Path({folder!r})
if sys.argv[1] == "create":
    job = yaml.safe_load(sys.stdin)
    name, (container,) = job["metadata"]["name"], job["spec"]["template"]["spec"]["containers"]
    code = subprocess.run(container["command"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
    (folder / name).write_text(json.dumps([code, job]))
else:
    code = json.loads((folder / sys.argv[3]).read_text())[0]
    print("1/" if code == 0 else "/1")
"""


def snakemake(environment, profile, folder, *arguments):
    return subprocess.run(
        [
            *("snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder / "run")),
            *("--workflow-profile", str(profile), "--config", f"preset={ROOT / 'tests' / 'smoke.yaml'}"),
            *arguments,
        ],
        capture_output=True,
        text=True,
        env=environment,
    )


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.name)
def test_a_profile_plans_the_graph(profile, warm, tmp_path):
    done = snakemake(warm, profile, tmp_path, "--cores", "2", "--dry-run", "--", "figures")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "distill" in done.stdout + done.stderr


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.name)
def test_a_profile_speaks_of_rules_that_are_there(profile):
    about = yaml.safe_load((profile / "profile.yaml").read_text())
    assert {*about.get("set-threads", {}), *about.get("set-resources", {})} <= RULES


def test_on_slurm_a_timing_has_its_node_to_itself():
    slurm = yaml.safe_load((ROOT / "workflow" / "profiles" / "slurm" / "profile.yaml").read_text())
    for rule in ("latency", "compare_one"):
        assert "--exclusive" in slurm["set-resources"][rule]["slurm_extra"]


@pytest.fixture
def kubernetes(tmp_path):
    """Return the profile with full paths of its scripts, and put a kubectl that runs jobs here on PATH."""
    kubectl = tmp_path / "kubectl"
    (tmp_path / "jobs").mkdir()
    kubectl.write_text(KUBECTL.format(python=sys.executable, folder=str(tmp_path / "jobs")))
    kubectl.chmod(0o755)
    text = (ROOT / "workflow" / "profiles" / "kubernetes" / "profile.yaml").read_text()
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "profile.yaml").write_text(text.replace("sh workflow", f"sh {ROOT}/workflow"))
    return tmp_path / "profile"


VOLUME = {"SEERBENCH_K8S_CLAIM": "claim", "SEERBENCH_K8S_MOUNT": "/work", "SEERBENCH_K8S_IMAGE": "image:1"}


@pytest.mark.slow(seconds=10)
def test_on_kubernetes_a_rule_is_a_job(kubernetes, warm, tmp_path):
    (tmp_path / "seerbench").write_text(STEP)
    (tmp_path / "seerbench").chmod(0o755)
    tokens = "results/fresh/smoke/corpora/toy/tokens.parquet"
    seconds = ("--seconds-between-status-checks", "1", "--latency-wait", "5")
    environment = {**warm, "PATH": f"{tmp_path}:{warm['PATH']}", **VOLUME}
    done = snakemake(environment, kubernetes, tmp_path, *seconds, "--", tokens)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "run" / tokens).exists()
    jobs = [yaml.safe_load(path.read_text())[1] for path in (tmp_path / "jobs").iterdir()]
    assert len(jobs) == 2  # one job of the tokenizer, which requests little, and one of the corpus
    pods = [job["spec"]["template"]["spec"] for job in jobs]
    (pod,) = [pod for pod in pods if pod["containers"][0]["resources"]["requests"]["cpu"] == "16"]
    assert pod["containers"][0]["image"] == "image:1"
    assert pod["containers"][0]["resources"] == {
        "requests": {"cpu": "16", "memory": "120000M"},
        "limits": {"memory": "120000M"},
    }
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "claim"}


def test_on_kubernetes_gpus_are_limits(tmp_path, kubernetes):
    script = tmp_path / "job.sh"
    script.write_text("exit 3\n")
    submit = ["sh", str(ROOT / "workflow/profiles/kubernetes/submit.sh"), "4", "8", "1000", str(script)]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(submit, capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    assert "export SEERBENCH_K8S_CLAIM" in done.stderr
    done = subprocess.run(submit, capture_output=True, text=True, env=environment | VOLUME, check=True)
    name = done.stdout.strip()
    job = yaml.safe_load((tmp_path / "jobs" / name).read_text())[1]
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"memory": "1000M", "nvidia.com/gpu": "8"}
    status = ["sh", str(ROOT / "workflow/profiles/kubernetes/status.sh"), name]
    assert subprocess.run(status, capture_output=True, text=True, env=environment).stdout.strip() == "failed"
