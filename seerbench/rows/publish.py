"""publish."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from seerbench.errors import ResultsError
from seerbench.rows.schema import TABLES
from seerbench.rows.store import Run, atomically, write_rows


def publish(fresh: Path, published: Path) -> Path:
    """Copy a fresh run to `published`, one file a table, with a manifest of hashes; the folder's path.

    The plans that rows name (MoA, MInference) go with them. Refuses rows that were measured from a dirty or
    unknown tree, since no reader could check them out. Measured rows of an earlier publication there are
    replaced table by table.
    """
    run = Run(fresh)
    runs = run.table("runs")
    if runs.empty:
        raise ResultsError(f"{fresh} holds no rows; measure first")
    unclean = runs[runs.commit.isna() | (runs.dirty != False)]  # noqa: E712 (null counts as unclean)
    if len(unclean):
        steps = ", ".join(sorted(set(unclean.step)))
        raise ResultsError(f"not published: {steps} ran on a dirty or unknown commit; commit, then measure again")
    by_id = {row["run_id"]: row for row in runs.to_dict("records")}
    manifest = {}
    for table in TABLES:
        if table == "runs":
            continue
        frame = run.table(table)
        if frame.empty:
            continue
        path = published / table / "all.parquet"
        write_rows(path, table, frame, [_plain(by_id[name]) for name in frame.run_id.unique()])
        manifest[str(path.relative_to(published))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for plan in sorted(fresh.glob("plans/*.json")):
        path = published / "plans" / plan.name
        atomically(path, lambda part, plan=plan: part.write_bytes(plan.read_bytes()))
        manifest[str(path.relative_to(published))] = hashlib.sha256(path.read_bytes()).hexdigest()
    atomically(published / "MANIFEST.json", lambda part: part.write_text(json.dumps(manifest, indent=1) + "\n"))
    return published


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A frame's row with its NaNs turned back into None, for JSON."""
    return {key: None if pd.isna(value) else value for key, value in row.items()}
