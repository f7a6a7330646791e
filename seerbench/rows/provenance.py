"""Describe one execution of a step: its row in the table `runs`, to which all rows that it measures refer."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from seerbench.paths import IS_CHECKOUT, ROOT
from seerbench.rows.git import git
from seerbench.rows.machine import cpu_name, gpu_facts, thread_count
from seerbench.rows.source_digest import source_digest

# The packages whose version a number may depend on.
PACKAGES = ("seerbench", "torch", "triton", "transformers", "flash-attn", "flash-attn-4", "minference")
# A file of ours, below the top folder of a repository that has our code.
SELF = "seerbench/__init__.py"


def provenance(
    step: str,
    *,
    preset: str,
    scale: str,
    seed: int,
    device: str,
    command: str | None = None,
    scale_kind: str | None = None,
    corpus: str | None = None,
    corpus_sha256: str | None = None,
    corpus_source: str | None = None,
    corpus_split: str | None = None,
    weights: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the `runs` row of this execution. Call it when the step starts; `finish` fills in the wall time.

    Args:
        step: what runs, e.g. "latency kernel 8192".
        preset: the name of the preset.
        scale: the size of the experiment in words.
        seed: the seed of the step.
        device: "cpu" or "cuda".
        command: the command line that repeats the step; None records that of this process.
        scale_kind: one of schema.SCALE_KINDS; None if it has none.
        corpus: the corpus that the step reads, if any.
        corpus_sha256: the hash of its texts.
        corpus_source: which texts these are: files with their hashes, data sets with their revisions.
        corpus_split: the split that the step reads: train, validation or test.
        weights: where the weights of each model come from, by the model's name.
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
        "command": command or shlex.join(["seerbench", *sys.argv[1:]]),
        "preset": preset,
        "scale": scale,
        "scale_kind": scale_kind,
        "seed": seed,
        "corpus": corpus,
        "corpus_sha256": corpus_sha256,
        "corpus_source": corpus_source,
        "corpus_split": corpus_split,
        "weights": json.dumps(dict(weights)) if weights else None,
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
    """Return a `runs` row with its wall time, in seconds until now."""
    started = datetime.fromisoformat(run["started"]).timestamp()
    return {**run, "wall_s": round(time.time() - started, 1)}


def commit_and_dirty(root: Path = ROOT) -> tuple[str | None, bool | None]:
    """Return the commit of a repository, and whether its tree has uncommitted changes.

    SEERBENCH_COMMIT and SEERBENCH_DIRTY (0 or 1) answer where they are set, for machines without git. Otherwise git
    does. Both are None where neither can, and where the repository at `root` does not track SELF: then it is
    another project's, into which this code was copied.
    """
    commit = os.environ.get("SEERBENCH_COMMIT")
    if commit:
        dirty = os.environ.get("SEERBENCH_DIRTY")
        return commit, None if dirty is None else dirty == "1"
    if root == ROOT and not IS_CHECKOUT:  # an installed wheel, whatever repository it lies in
        return None, None
    head = git(root, "rev-parse", "--verify", "HEAD")
    tracked = git(root, "ls-files", "--error-unmatch", "--", SELF)
    status = git(root, "status", "--porcelain", "--untracked-files=normal", "--ignore-submodules=none")
    if head.returncode or tracked.returncode or status.returncode:
        return None, None
    return head.stdout.decode().strip(), bool(status.stdout.strip())


def versions() -> dict[str, str]:
    """Return the version of Python and of each installed package of PACKAGES."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed
