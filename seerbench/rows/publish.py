"""Copy a fresh run to results/published, where it is committed, with a manifest of its files' hashes.

`seerbench publish` calls it; no rule does, so that a run is published on purpose only. staleness.py checks
published runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from seerbench.errors import ResultsError
from seerbench.rows.schema import TABLES
from seerbench.rows.store import Run, write_bytes, write_rows

MANIFEST = "MANIFEST.json"  # in a published run: file -> its SHA-256


def publish(fresh: Path, published: Path) -> Path:
    """Copy the run `fresh` to the folder `published`, one file per table, and return that folder.

    The plan files that rows name (MoA, MInference) are copied too. A table of an earlier publication there is
    replaced. Raises ResultsError where there are no rows, or where some were measured from a tree with uncommitted
    changes or at an unknown commit, since nobody could check that tree out.
    """
    run = Run(fresh)
    runs = run.table("runs")
    if runs.empty:
        raise ResultsError(f"{fresh} holds no rows; measure first")
    unclean = runs[runs.commit.isna() | (runs.dirty != False)]  # noqa: E712 (an unknown state counts as unclean)
    if len(unclean):
        steps = ", ".join(sorted(set(unclean.step)))
        raise ResultsError(f"not published: {steps} ran on a dirty or unknown commit; commit, then measure again")
    by_id = {row["run_id"]: row for row in runs.to_dict("records")}
    manifest = {}
    for table in TABLES:
        if table == "runs":
            continue
        rows = run.table(table)
        if rows.empty:
            continue
        path = published / table / "all.parquet"
        write_rows(path, table, rows, [without_nan(by_id[run_id]) for run_id in rows.run_id.unique()])
        manifest[str(path.relative_to(published))] = sha256(path)
    for plan in sorted(fresh.glob("plans/*.json")):
        path = published / "plans" / plan.name
        write_bytes(path, plan.read_bytes())
        manifest[str(path.relative_to(published))] = sha256(path)
    write_bytes(published / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    return published


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def without_nan(row: Mapping[Hashable, Any]) -> dict[str, Any]:
    """Return a row of a frame with None for its NaNs, which JSON does not have."""
    return {str(name): None if pd.isna(value) else value for name, value in row.items()}
