"""Check published runs: whether their files are those that were published, and their timings those of this tree."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from seerbench.errors import UnknownCommit
from seerbench.rows.manifest import MANIFEST, Manifest
from seerbench.rows.source_digest import changed_since
from seerbench.rows.store import Run


def stale(folder: Path) -> list[str]:
    """Return the problems of a published run, one sentence each; an empty list if there are none.

    Problems are a changed or missing file, and timings of other kernels or methods than this tree's. A timing is up
    to date while this tree has every definition that the commit had that measured it (source_digest.changed_since).
    The timings of a run with changed files are not judged. Raises ResultsError for a manifest that cannot be read.
    """
    manifest = Manifest.of(folder)
    if manifest is None:
        return [f"{folder} has no {MANIFEST}; publish it with seerbench publish"]
    problems = [f"{path} is not the file that was published" for path in manifest.changed()]
    if problems:
        return problems
    run = Run(folder)
    runs = run.table("runs")
    timed = runs[runs.run_id.isin(set(run.table("cells").run_id))]
    for (commit, recorded, dirty), steps in timed.groupby(["commit", "source_digest", "dirty"], dropna=False):
        commit = None if pd.isna(commit) else commit
        which = f"{len(steps)} timing steps at {f'commit {commit[:9]}' if commit else 'an unknown commit'}"
        try:
            changed = changed_since(commit, recorded, pd.isna(dirty) or bool(dirty))
        except UnknownCommit as unknown:
            problems.append(f"{folder}: cannot tell whether kernels have changed since {which}: {unknown}")
            continue
        if changed:
            others = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            names = f"{', '.join(changed[:3])}{others}"
            problems.append(f"{folder}: {which} were measured with older kernels; changed since: {names}")
    return problems
