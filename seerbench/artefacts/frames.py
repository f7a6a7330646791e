"""Frames: the rows of one experiment or sweep, and the one form in which every artefact holds its numbers.

The frame of an artefact has one line per number. `source` is "paper" or "measured". `status` is "printed" for the
paper's numbers; for measured ones it is the status of the rows (measured, refused, failed, out_of_memory,
disturbed) or "missing". A line without a number has a `reason`. `label` says where the number comes from.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from seerbench.errors import MissingRows
from seerbench.rows import requests
from seerbench.rows.store import Run
from seerbench.rows.timings import timings as judged_timings

# The reason of a method of the paper that a run did not measure. Tables name these methods below, without a line.
NOT_HERE = "not in this run"
# The columns of a frame, in this order; each artefact has those that it needs.
COLUMNS = (
    "panel",
    "source",
    "series",
    "method",
    "gate",
    "recipe",
    "model",
    "corpus",
    "task",
    "bucket",
    "context",
    "sparsity_requested",
    "threshold",  # of a gate that selects by the softmax of its scores, in place of a requested sparsity
    "sparsity_realised",
    "inputs_kind",
    "implementation",
    "stage",
    "base",
    "metric",
    "x",
    "y",
    "value",
    "low",
    "high",
    "unit",
    "delta",
    "delta_low",
    "delta_high",
    "count",  # the number of units that the interval is over: documents, rounds or examples
    "status",
    "reason",
    "label",
)
TEXTS = {"panel", "source", "series", "method", "gate", "recipe", "model", "corpus", "task", "bucket"}
TEXTS |= {
    "document",
    "definition",
    "prefill",
    "reach",
    "protocol",
    "inputs_kind",
    "implementation",
    "stage",
    "base",
    "metric",
    "unit",
    "status",
    "reason",
    "label",
}


def experiments(run: Run, table: str, name: str, step: str) -> pd.DataFrame:
    """Return the rows of an experiment and of its parts, such as `yarn` and `yarn-math` (another corpus).

    Raises MissingRows, which names `step`, if there are none.
    """
    names = requests.rows(run, table).experiment.unique()
    parts = [part for part in names if part == name or part.startswith(f"{name}-")]
    return pd.concat([experiment(run, table, part, step) for part in parts or [name]], ignore_index=True)


def experiment(run: Run, table: str, name: str, step: str) -> pd.DataFrame:
    """Return the rows of one experiment.

    A fresh run has one file per experiment, a published run one file per table. Raises MissingRows, which names
    `step`, if there are none.
    """
    rows = requests.rows(run, table, name)
    if rows.empty:
        rows = requests.rows(run, table)
        if "experiment" in rows:
            rows = rows[rows.experiment == name]
    if rows.empty:
        raise MissingRows(table, f"{table} rows of the experiment {name!r}", f"{step} PRESET {name}", run.folder)
    return rows.reset_index(drop=True)


def as_in_paper(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of dense attention and of SeerAttention with the paper's rule: the top k blocks in every row.

    Variants such as "seer+last2" or "seer+layer" are methods of their own.
    """
    return rows[rows.method.isin(["dense", "seer"])].reset_index(drop=True)


def timings(run: Run, sweep: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return (cells, samples) of one timing sweep; disturbed cells are marked and have no samples.

    See rows/timings.py. Raises MissingRows if the run has no such cells, or measured ones without their samples.
    """
    cells, samples = judged_timings(run, sweep)
    for table, rows in {"cells": cells, "samples": samples}.items():
        if rows.empty and (table == "cells" or (cells.status == "measured").any()):
            raise MissingRows(
                table, f"{table} of the sweep {sweep!r}", f"latency PRESET {sweep} CONTEXT", run.folder
            )
    return cells, samples


def unmeasured_methods(printed: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """Return one empty line per place for each of the paper's methods that the run did not measure at all.

    A place is a context, and a length bucket where the frame has them.
    """
    methods = [name for name in printed.method.unique() if name not in set(measured.method)]
    places = measured.drop_duplicates([name for name in ("context", "bucket") if name in measured])
    lines = [
        {
            "source": "measured",
            "method": method,
            "model": place.model if "model" in measured else None,
            "context": place.context,
            "bucket": place.bucket if "bucket" in measured else None,
            "metric": place.metric,
            "status": "missing",
            "reason": NOT_HERE,
            "label": place.label,
        }
        for method in methods
        for place in places.itertuples()
    ]
    return pd.DataFrame(lines)


def tidy(*frames: pd.DataFrame, extra: Sequence[str] = ()) -> pd.DataFrame:
    """Return the frames one below the other, with the columns in the order of COLUMNS, then `extra`.

    Columns of TEXTS hold text or None, all others numbers. Where y is a column, low and high are too: they stay
    empty if nothing was measured that has an interval.
    """
    # Built from records, since pd.concat guesses other types if a column of one frame is empty.
    records = [record for frame in frames for record in frame.to_dict("records")]
    present = {name for frame in frames for name in frame}
    present |= {"low", "high"} if "y" in present else set()
    columns = [name for name in (*COLUMNS, *extra) if name in present]
    combined = pd.DataFrame(records, columns=columns)
    for name in columns:
        if name in TEXTS:
            combined[name] = combined[name].astype(object).where(combined[name].notna(), None)
        else:
            combined[name] = pd.to_numeric(combined[name])
    return combined
