"""Labels: the scale, device, date and commit of measured numbers, as every table and figure shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from seerbench.errors import UnknownCommit
from seerbench.rows.schema import DISTURBED
from seerbench.rows.source_digest import changed_since
from seerbench.rows.store import Run


@dataclass(frozen=True)
class Label:
    """Say where measured numbers come from. `str()` gives the text under a figure.

    scales, devices, commits: without repetitions. dates: the first and the last day of measurement, as
    YYYY-MM-DD; one entry where they are equal. remarks: what else a reader must know, such as other kernels than
    this tree's.
    """

    scales: tuple[str, ...]
    devices: tuple[str, ...]
    dates: tuple[str, ...]
    commits: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Return the label in one line, without the word "measured"."""
        parts = [*self.scales, *self.devices, " to ".join(self.dates), ", ".join(self.commits), *self.remarks]
        return "; ".join(parts)

    def __str__(self) -> str:
        return f"measured: {self.text}"


def label(run: Run, *rows: pd.DataFrame, timed: bool = False) -> Label:
    """Return the label of the executions that `rows` name in their column `run_id`.

    timed: the rows are timings. The label then says if the kernels that were timed differ from this tree's, and how
    many timings are left out as disturbed.
    """
    names = {name for frame in rows for name in frame.run_id.unique()}
    runs = run.table("runs")
    runs = runs[runs.run_id.isin(names)]
    days = sorted({started[:10] for started in runs.started})
    commits = sorted({_commit(commit, dirty) for commit, dirty in zip(runs.commit, runs.dirty)})
    return Label(
        scales=tuple(dict.fromkeys(runs.scale)),
        devices=tuple(dict.fromkeys(runs.device)),
        dates=tuple(dict.fromkeys((days[0], days[-1]))),
        commits=tuple(commits),
        remarks=(*_kernel_remarks(runs), *_disturbance_remarks(rows)) if timed else (),
    )


def _kernel_remarks(runs: pd.DataFrame) -> tuple[str, ...]:
    """Return a remark if the runs timed other kernels than this tree's, or if that cannot be known."""
    unknown = False
    for commit, recorded, dirty in set(zip(runs.commit, runs.source_digest, runs.dirty)):
        try:
            commit = commit if isinstance(commit, str) else None
            if changed_since(commit, recorded, pd.isna(dirty) or bool(dirty)):
                return ("measured with other kernels than this tree's",)
        except UnknownCommit:
            unknown = True
    return ("perhaps with other kernels than this tree's (that commit is not in this repository)",) * unknown


def _disturbance_remarks(rows: Sequence[pd.DataFrame]) -> tuple[str, ...]:
    """Return a remark if cells among the rows were disturbed."""
    statuses = [status for frame in rows if "status" in frame for status in frame.status]
    disturbed = statuses.count(DISTURBED)
    return (f"{disturbed} of {len(statuses)} timings are left out as disturbed",) * bool(disturbed)


def _commit(commit: str | None, dirty: bool | None) -> str:
    if not isinstance(commit, str):
        return "unknown commit"
    # A null means that nobody recorded whether the tree was clean, which is not the same as clean.
    if pd.isna(dirty):
        return f"commit {commit[:7]} (unknown whether clean)"
    return f"commit {commit[:7]}{' (dirty)' if dirty else ''}"
