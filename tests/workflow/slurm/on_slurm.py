"""The graph on Slurm: the smoke preset through `--executor slurm` on real daemons (make test-slurm).

Opt-in, since it needs Debian's packages slurm-wlm and munge. A munged, a slurmctld and a slurmd of their own run
on this machine for the length of the test, on their own ports, below a temporary folder; a Slurm that the machine
already has is left alone. They run as the user who starts the test.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from seerbench.artefacts import ARTEFACTS
from seerbench.paths import ROOT
from seerbench.presets.load import load_preset
from seerbench.rows.store import Run

PACKAGES = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
SBIN = "/usr/sbin:/sbin"

CONFIG = """\
ClusterName=seerbench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
MinJobAge=3600
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def slurm(tmp_path):
    """Start a cluster of one node and return its environment; its logs are in tmp_path/slurm."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:{SBIN}"
    missing = [name for name in PACKAGES if shutil.which(name, path=path) is None]
    if missing:
        pytest.fail(f"{', '.join(missing)} not found: apt-get install slurm-wlm munge")
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    config = folder / "slurm.conf"
    config.write_text(
        CONFIG.format(
            host=socket.gethostname().split(".")[0],
            controller=free_port(),
            node=free_port(),
            user=getpass.getuser(),
            folder=folder,
            cpus=len(os.sched_getaffinity(0)),
            memory=int(psutil.virtual_memory().total / 2**20 * 0.9),
        )
    )
    # A job's own srun loses SLURM_CONF (the executor plugin clears SLURM_*), and has to find these daemons.
    (folder / "bin").mkdir()
    srun = folder / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={config} exec {shutil.which("srun", path=path)} "$@"\n')
    srun.chmod(0o755)
    path = f"{folder}/bin:{path}"
    environment = {**os.environ, "PATH": path, "SLURM_CONF": str(config)}
    munge = [
        f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "pid-file", "log-file", "seed-file")
    ]
    commands = (
        ["munged", "--foreground", "--force", f"--key-file={key}", *munge],
        ["slurmctld", "-D", "-c", "-f", str(config)],
        ["slurmd", "-D", "-c", "-f", str(config)],
    )
    daemons = []
    try:
        for command in commands:
            log = (folder / f"{command[0]}.out").open("w")
            daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(2)
        wait_for_idle(environment, folder)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=30)


def wait_for_idle(environment, folder: Path) -> None:
    """Wait until the node accepts jobs; fail with the daemons' logs if it does not."""
    for _ in range(60):
        state = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True)
        if state.stdout.strip() == "idle":
            return
        time.sleep(1)
    logs = "\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in sorted(folder.glob("*.log")))
    pytest.fail(f"the node did not come up: {state.stdout}{state.stderr}\n{logs}")


def smaller_profile(folder: Path) -> Path:
    """Return the profile with fewer threads and less memory: this node has two cores, and the models are toys."""
    profile = yaml.safe_load((ROOT / "workflow" / "profiles" / "slurm" / "profile.yaml").read_text())
    profile["set-threads"] = dict.fromkeys(profile["set-threads"], 1)
    for wanted in (profile["default-resources"], *profile["set-resources"].values()):
        wanted |= {"mem_mb": 3000, "runtime": 30}
    folder.mkdir()
    (folder / "profile.yaml").write_text(yaml.safe_dump(profile))
    return folder


@pytest.mark.timeout(3600)
def test_the_smoke_preset_runs_on_slurm(slurm, tmp_path):
    run = subprocess.run(
        [
            *("snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(tmp_path)),
            *("--workflow-profile", str(smaller_profile(tmp_path / "profile"))),
            # This cluster has two cores and no accounting; all other settings are the profile's.
            *("--slurm-no-account", "--slurm-status-command", "squeue"),
            *("--slurm-init-seconds-before-status-checks", "2", "--slurm-keep-successful-logs"),
            "--printshellcmds",  # Snakemake's own words, which name Slurm's jobs
            *("--config", f"preset={ROOT / 'tests' / 'smoke.yaml'}", "--", "figures"),
        ],
        env=slurm,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    said = run.stdout + run.stderr
    (tmp_path / "snakemake.log").write_text(said)
    assert run.returncode == 0, said[-4000:]

    # Every job but the target went through sbatch, and Slurm reports that each completed.
    submitted = re.findall(r"SLURM jobid '?(\d+)", said)
    jobs = subprocess.run(["scontrol", "show", "jobs", "-o"], env=slurm, capture_output=True, text=True).stdout
    states = dict(re.findall(r"JobId=(\d+) .*?JobState=(\w+)", jobs))
    (tmp_path / "jobs.txt").write_text(jobs)
    assert len(submitted) >= 30
    assert {states[job] for job in submitted} == {"COMPLETED"}
    timings = [line for line in jobs.splitlines() if "rule_latency" in line]
    assert timings
    assert all("OverSubscribe=NO" in line for line in timings)  # a timing has its node to itself

    runs = Run(tmp_path / "results" / "fresh" / "smoke").table("runs")
    assert runs.step.is_unique
    preset = load_preset(str(ROOT / "tests" / "smoke.yaml"))
    for name, about in ARTEFACTS.items():
        if preset.rows_for(about.needs)[1]:
            continue  # The preset does not measure its rows.
        for suffix in about.suffixes:
            assert (tmp_path / "figures" / "smoke" / f"{name}{suffix}").stat().st_size > 100
