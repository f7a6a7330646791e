"""Find rows of other methods that can be compared with an evaluation, in other runs of the same preset.

Numbers are comparable where they were measured on the same windows: the same weights, texts and context, and the
same documents or examples. Each run pairs its methods with its own dense attention. That two runs had the same
model and windows is checked by what they measured: dense attention has the same loss on each document, up to
rounding. Times are compared on one machine alone, as ratios to dense attention in the same rounds.

What is found is written as a run of its own, `beside/` in the folder of the evaluation, so that it can be shared
with it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from seerbench.evaluate.protocol import LOOKUPS, LOSSES, RULER, RULER_LAST, TIMINGS
from seerbench.methods.block_sparse_kernels import DENSE
from seerbench.rows import requests
from seerbench.rows.schema import schema
from seerbench.rows.store import Run, write_rows
from seerbench.rows.timings import timings

FOLDER = "beside"
# Largest difference, in nats per token, that the rounding of another device or dtype makes between two losses of
# dense attention on one document. Another text or another model differs by far more.
SAME_LOSS = 0.01
# part of an evaluation -> its table, and the experiments or the sweep that are compared.
LOSS_PART, LOOKUP_PART, RULER_PART, TIME_PART = "losses", "look-ups", "RULER", "times"
PARTS = {
    LOSS_PART: ("perplexity", (LOSSES,)),
    LOOKUP_PART: ("tasks", (LOOKUPS,)),
    RULER_PART: ("tasks", (RULER, RULER_LAST)),
    TIME_PART: ("cells", (TIMINGS,)),
}


def write_beside(run: Run, others: Sequence[Run], method: str) -> dict[str, Path]:
    """Write the comparable rows of other runs; return the folder of the run of each part that has some.

    For each of PARTS, the first run with comparable rows counts.

    Args:
        run: the evaluation.
        others: the runs of the same preset, the preferred ones first.
        method: the method that was evaluated; rows of a method of this name are left out.
    """
    shutil.rmtree(run.folder / FOLDER, ignore_errors=True)  # what an earlier evaluation found
    found: dict[str, Path] = {}
    for part in PARTS:
        for other in others:
            rows = comparable(run, other, part)
            rows = rows[rows.method.map(lambda name: name.partition("+")[0]) != method]
            if (~rows.method.isin(DENSE)).any():
                _write(run.folder / FOLDER, other, part, rows)
                found[part] = other.folder
                break
    return found


def comparable(run: Run, other: Run, part: str) -> pd.DataFrame:
    """Return the rows of another run that were measured on the same windows at the same requested sparsities."""
    mine, rows = rows_of(run, part), rows_of(other, part)
    if mine.empty or rows.empty:
        return rows.iloc[:0]
    sparsities = set(mine.sparsity_requested.dropna())
    rows = rows[rows.method.isin(DENSE) | rows.sparsity_requested.isin(sparsities)]
    rows = rows[rows.run_id.isin(_same_inputs(run, other, mine))]
    if part == LOSS_PART:
        return _same_documents(mine, rows)
    if part in (LOOKUP_PART, RULER_PART):
        # An example of RULER does not depend on how many there are (data/ruler/tasks.py).
        return _same_examples(mine, rows, some=part == RULER_PART)
    same = rows.inputs.isin(mine.inputs) & rows.context.isin(mine.context) & rows.device.isin(mine.device)
    return rows[same]


def rows_of(run: Run, part: str) -> pd.DataFrame:
    """Return the rows of a part of an evaluation; disturbed cells are marked (rows/timings.py)."""
    table, names = PARTS[part]
    if table == "cells":
        return timings(run, TIMINGS)[0]
    rows = requests.rows(run, table)
    return rows[rows.experiment.isin(names)]


def _same_inputs(run: Run, other: Run, mine: pd.DataFrame) -> set[str]:
    """Return the executions of another run that read the same texts with the same weights and seed."""
    inputs = ["corpus_sha256", "corpus_split", "weights", "seed"]
    runs = run.table("runs")
    own = {tuple(line) for line in runs[runs.run_id.isin(mine.run_id)][inputs].itertuples(index=False)}
    theirs = other.table("runs")
    return {
        run_id
        for run_id, line in zip(theirs.run_id, theirs[inputs].itertuples(index=False), strict=True)
        if tuple(line) in own
    }


def _same_documents(mine: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the contexts at which dense attention has the same loss on each document of `mine`."""
    kept = [rows.iloc[:0]]
    place = ["model", "corpus", "context"]
    for key, own in mine[mine.method == "dense"].groupby(place):
        there = rows[(rows[place] == list(key)).all(axis=1) & rows.document.isin(own.document)]
        dense = there[there.method == "dense"].drop_duplicates("document").set_index("document")
        own = own.set_index("document")
        if set(own.index) == set(dense.index) and ((own.nll - dense.nll).abs() < SAME_LOSS).all():
            kept.append(there[there.tokens.isin(own.tokens)])
    return pd.concat(kept)


def _same_examples(mine: pd.DataFrame, rows: pd.DataFrame, some: bool) -> pd.DataFrame:
    """Return the rows of the tasks and contexts of which both runs have the same examples.

    some: whether the other run may have more examples, which are then left out.
    """
    kept = [rows.iloc[:0]]
    place = ["model", "corpus", "task", "context"]
    for key, own in mine.groupby(place):
        there = rows[(rows[place] == list(key)).all(axis=1)]
        wanted, found = set(_examples(own)), _examples(there)
        if wanted == set(found) or (some and wanted < set(found)):
            kept.append(there[[example in wanted for example in found]])
    return pd.concat(kept)


def _examples(rows: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Return what tells the example of each row from others."""
    columns = rows[["example", "distance", "references", "definition"]].astype(object)
    return [tuple(line) for line in columns.where(columns.notna(), None).itertuples(index=False)]


def _write(folder: Path, other: Run, part: str, rows: pd.DataFrame) -> None:
    """Write rows of another run with their provenance, and the samples of timings."""
    table, (name, *_) = PARTS[part]
    runs = other.table("runs")
    executions = _records(runs[runs.run_id.isin(rows.run_id)])
    stored = [name for name in rows if name in schema(table).names]
    write_rows(folder / table / f"{name}.parquet", table, _records(rows[stored]), executions)
    if table == "cells":
        _, samples = timings(other, TIMINGS)
        kept = samples.merge(rows[["run_id", "cell", "method"]].drop_duplicates())
        write_rows(folder / "samples" / f"{name}.parquet", "samples", kept, executions)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a frame as records in which empty values are None."""
    records = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{str(name): value for name, value in record.items()} for record in records]
