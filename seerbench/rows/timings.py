"""Read timings, and set apart those from which nothing may be concluded.

Artefacts, claims, advice, comparisons and notebooks get timings from `timings` or `judged`, and no other module
reads the table `samples`; a test checks that. A cell is set apart if

- it was timed while other processes used the machine: its row has the status disturbed (measure/load.py), or
- its numbers are impossible (`impossible`), which happens if a load was not noticed.

Rows that are set apart have the status disturbed and a reason, and their samples are left out. The files keep both.
Cells that skip another share than was requested are refused (requests.py); their samples are left out too.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from seerbench.rows import requests
from seerbench.rows.schema import DISTURBED
from seerbench.rows.store import Run

KEY = ["run_id", "cell", "method"]  # one row of the table `cells`
# Columns that two cells share if they differ in the context alone.
SERIES = ["sweep", "method", "implementation", "device", "dtype", "batch", "q_heads", "kv_heads", "head_dim"]
SERIES += ["block_q", "block_k", "inputs_kind", "inputs_model", "mask", "gate", "sparsity_requested"]
WHOLE = ("total", "ttft", "forward", "attend")  # the stage that is a method's whole work: the first that it has
QUARTILES = (0.25, 0.5, 0.75)
# The three limits are higher than what quiet machines show (69 CPU cells of two cores, 357 of an H100) and lower
# than what a busy one did. On the quiet ones no method was slower at the shorter context, also where launches take
# most of the time and both contexts take as long.
MAX_DECREASE = 1.1
# Both in one call over plan and attention apart: 0.78 to 1.95 on the quiet machines. It is not 1, since the second
# call finds data in a cache, and since a plan may wait for the GPU. A busy host gave 2.1 to 6.1.
MAX_PARTS = 2.0
# The third quartile of the times over the first: at most 1.6 on the quiet machines, up to 4.9 on a busy host.
MAX_SPREAD = 2.0


def timings(run: Run, sweep: str | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return (cells, samples) of one sweep of a run, or of all, as `judged` returns them.

    Cells that break their request are refused before.
    """
    cells, samples = requests.rows(run, "cells"), run.table("samples")
    if sweep is not None:
        cells = cells[cells.sweep == sweep]
    return judged(cells.reset_index(drop=True), samples[samples.run_id.isin(cells.run_id.unique())])


def disturbed_steps(run: Run) -> list[str]:
    """Return the commands of the steps whose timings are set apart, in the order of their names."""
    cells, _ = timings(run)
    apart = cells[cells.status == DISTURBED]
    runs = run.table("runs")
    return sorted(runs[runs.run_id.isin(apart.run_id)].command.unique())


def judged(cells: pd.DataFrame, samples: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the cells with disturbed and impossible ones marked, and the samples of the measured ones.

    Args:
        cells: rows of the table `cells`. Impossible cells are recognised by comparison, so rows of one run belong
            together.
        samples: their rows of the table `samples`.
    """
    reasons = impossible(cells, samples)
    marked = cells.assign(
        status=cells.status.where(reasons.isna(), DISTURBED), reason=cells.reason.where(reasons.isna(), reasons)
    )
    keep = pd.MultiIndex.from_frame(marked.loc[marked.status == "measured", KEY])
    kept = samples[pd.MultiIndex.from_frame(samples[KEY]).isin(keep)]
    return marked, kept.reset_index(drop=True)


def impossible(cells: pd.DataFrame, samples: pd.DataFrame) -> pd.Series:
    """Return why the times of each row of `cells` cannot be right, in words; None if they can be.

    Only measured cells are judged. Three things are impossible if they exceed the limits of this module: a method
    is slower at a shorter context with no more blocks to compute; planning and attention take another time apart
    than together; rounds differ from each other several times over.
    """
    quartiles = _quartiles(samples)
    reasons = pd.Series([None] * len(cells), cells.index, dtype=object)
    measured = cells[cells.status == "measured"]
    stages = {index: quartiles.get(tuple(row), {}) for index, *row in measured[KEY].itertuples()}
    for index, of_cell in stages.items():
        reasons[index] = impossible_spread(of_cell) or _parts(of_cell)
    for index, reason in _slower_when_shorter(measured, stages):
        reasons[index] = reasons[index] or reason
    return reasons


def impossible_spread(stages: Mapping[str, np.ndarray]) -> str | None:
    """Return why the rounds of a method differ too much from each other; None if they do not.

    stages: (first quartile, median, third quartile) over the rounds, in milliseconds, by stage.
    """
    for stage, (low, _, high) in stages.items():
        if high > MAX_SPREAD * low:
            return f"impossible spread: half of the rounds outside {low:.3g} to {high:.3g} ms ({stage})"
    return None


def _quartiles(samples: pd.DataFrame) -> dict[tuple[Hashable, ...], dict[str, np.ndarray]]:
    """Return (run_id, cell, method) -> stage -> (first quartile, median, third quartile) in milliseconds."""
    by_stage: dict[tuple[Hashable, ...], dict[str, np.ndarray]] = {}
    if samples.empty:
        return by_stage
    table = samples.groupby([*KEY, "stage"], sort=False).ms.quantile(list(QUARTILES)).unstack()
    for (*key, stage), numbers in zip(table.index, table.to_numpy(), strict=True):
        by_stage.setdefault(tuple(key), {})[stage] = numbers
    return by_stage


def _parts(stages: dict[str, np.ndarray]) -> str | None:
    """Return why plan and attention do not make up the whole; None if they do, or if they were not timed apart."""
    if "plan" not in stages or "attend" not in stages:
        return None
    low, _, high = stages["plan"] + stages["attend"]
    if "ttft" in stages and low > stages["ttft"][2]:  # they are parts of the same forward passes
        return f"impossible parts: {low:.3g} ms of planning and attention within {stages['ttft'][2]:.3g} ms"
    if "total" in stages:
        first, _, third = stages["total"]
        if first > MAX_PARTS * high or third * MAX_PARTS < low:
            whole, parts = stages["total"][1], stages["plan"][1] + stages["attend"][1]
            return f"impossible parts: plan and attention take {parts:.3g} ms apart and {whole:.3g} ms together"
    return None


def _slower_when_shorter(
    cells: pd.DataFrame, stages: dict[Hashable, dict[str, np.ndarray]]
) -> Iterator[tuple[Hashable, str]]:
    """Yield (index, reason) for each cell that is slower than at a longer context with as many blocks to compute.

    The shorter cell is at fault: other work makes a cell slower, never faster.
    """
    series: dict[tuple[Any, ...], list[tuple[Hashable, int, float, np.ndarray]]] = {}
    columns = cells[[*SERIES, "context", "sparsity_realised"]].astype(object)
    for index, *row in columns.where(columns.notna(), None).itertuples():
        *key, context, skipped = row
        whole = next((stages[index][stage] for stage in WHOLE if stage in stages[index]), None)
        if whole is not None:
            blocks = (1 - (skipped or 0.0)) * context**2
            series.setdefault(tuple(key), []).append((index, context, blocks, whole))
    for timed in series.values():
        for index, context, blocks, (first, median, _) in timed:
            slowest: dict[int, np.ndarray] = {}  # by longer context, since a dense method has several cells at each
            for _, longer, more_blocks, whole in timed:
                if longer > context and more_blocks >= blocks:
                    slowest[longer] = max(whole, slowest.get(longer, whole), key=lambda numbers: float(numbers[1]))
            for longer, (_, other, third) in sorted(slowest.items()):
                if first > third and median > MAX_DECREASE * other:
                    yield index, f"impossible: {median:.3g} ms, and {other:.3g} ms at {longer} tokens"
                    break
