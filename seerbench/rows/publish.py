"""Copy a fresh run to results/published, where it is committed, with a manifest of its files' hashes.

`seerbench publish` calls it; no rule does, so that a run is published on purpose only. staleness.py checks
published runs.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from seerbench.errors import ResultsError
from seerbench.rows.manifest import Manifest
from seerbench.rows.schema import TABLES
from seerbench.rows.store import Run, write_rows
from seerbench.writing import atomically, write_bytes


def publish(fresh: Path, published: Path, gates: Mapping[str, bytes] | None = None) -> Path:
    """Copy the run `fresh` to the folder `published`, one file per table, and return that folder.

    The plan files that rows name (MoA, MInference) are copied too, and gates are added: the content of a file for
    each gate job. An earlier publication there is replaced as a whole, once the new one is complete. Raises
    ResultsError where there are no rows, or where some were measured from a tree with uncommitted changes or at an
    unknown commit, since nobody could check that tree out.
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
    tables = {name: rows for name in TABLES if name != "runs" and len(rows := run.table(name))}
    files = {f"plans/{plan.name}": plan.read_bytes() for plan in sorted(fresh.glob("plans/*.json"))}
    files |= {f"gates/{job}.safetensors": content for job, content in (gates or {}).items()}

    def write(folder: Path) -> None:
        for table, rows in tables.items():
            steps = [without_nan(by_id[run_id]) for run_id in rows.run_id.unique()]
            write_rows(folder / table / "all.parquet", table, rows, steps)
        for name, content in files.items():
            write_bytes(folder / name, content)
        Manifest.write(folder, [*(f"{table}/all.parquet" for table in tables), *files])

    atomically(published, write)
    return published


def without_nan(row: Mapping[Hashable, Any]) -> dict[str, Any]:
    """Return a row of a frame with None for its NaNs, which JSON does not have."""
    return {str(name): None if pd.isna(value) else value for name, value in row.items()}
