"""provenance."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from seerbench.paths import ROOT
from seerbench.rows.machine import cpu_name, gpu_facts, thread_count
from seerbench.rows.source_digest import source_digest


def provenance(
    step: str,
    *,
    preset: str,
    scale: str,
    seed: int,
    device: str,
    scale_kind: str | None = None,
    corpus: str | None = None,
    corpus_sha256: str | None = None,
    corpus_split: str | None = None,
) -> dict[str, Any]:
    """The `runs` row of this execution. Call it when the step starts; `finish` sets its wall time.

    device is "cpu" or "cuda". A node without git hands the commit in through SEERBENCH_COMMIT and
    SEERBENCH_DIRTY (0 or 1).
    """
    started = datetime.now(UTC)
    commit, dirty = commit_and_dirty()
    identity = f"{step} {started.isoformat()} {os.getpid()} {platform.node()}"
    facts = gpu_facts() if device == "cuda" else {}
    return {
        "run_id": f"{started:%Y%m%dT%H%M%S}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}",
        "step": step,
        "started": started.isoformat(timespec="seconds"),
        "wall_s": 0.0,
        "command": shlex.join(["seerbench", *sys.argv[1:]]),
        "preset": preset,
        "scale": scale,
        "scale_kind": scale_kind,
        "seed": seed,
        "corpus": corpus,
        "corpus_sha256": corpus_sha256,
        "corpus_split": corpus_split,
        "commit": commit,
        "dirty": dirty,
        "source_digest": source_digest(),
        "device": facts.get("name") or cpu_name(),
        "driver": facts.get("driver"),
        "sm_clock_mhz": facts.get("sm_clock_mhz"),
        "threads": thread_count(),
        "platform": platform.platform(),
        "versions": json.dumps(versions(), sort_keys=True),
    }


def finish(run: dict[str, Any]) -> dict[str, Any]:
    """The same row with its wall time filled in."""
    started = datetime.fromisoformat(run["started"]).timestamp()
    return {**run, "wall_s": round(time.time() - started, 1)}


def commit_and_dirty() -> tuple[str | None, bool | None]:
    """(commit, dirty) as handed in by the environment, else as git says, else (None, None)."""
    if os.environ.get("SEERBENCH_COMMIT"):
        dirty = os.environ.get("SEERBENCH_DIRTY")
        return os.environ["SEERBENCH_COMMIT"], None if dirty is None else dirty == "1"
    if not shutil.which("git") or not (ROOT / ".git").exists():
        return None, None
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    status = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True)
    if head.returncode or status.returncode:
        return None, None
    return head.stdout.strip(), bool(status.stdout.strip())


def versions() -> dict[str, str]:
    """Version of Python and of each package that a number may depend on, if installed."""
    found = {"python": platform.python_version()}
    for name in ("seerbench", "torch", "triton", "transformers", "flash-attn", "flash-attn-4", "minference"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
