"""Table beyond the paper: the share of the oracle's blocks that each method keeps, at equal sparsity.

The oracle applies the top-k rule to the true pooled attention map. If a trained gate did not keep more of its
blocks than an untrained gate, StreamingLLM's fixed pattern and random blocks, its perplexity would say nothing
about the gate.

The average over all rows hides the one row that a look-up needs. Where a run has windows of look-ups (experiments
`gates-*`), the table also shows how often that row keeps the block with the answer.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from seerbench.artefacts import aggregates, frames, labels, style, table_format
from seerbench.artefacts import chart as charts
from seerbench.rows import bootstrap
from seerbench.rows.store import Run

CELL = ["model", "corpus", "task", "context", "method", "gate", "sparsity_requested"]
ASKED = "asked"  # the metric of the asking row
METRICS = {"recall": "block recall", "mass": "kept mass", ASKED: "asked block, asking row"}
# Heads count for ASKED if more than this share of the asking token's attention goes to the block with the answer.
LOOKS_UP = 0.2


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one line per cell and metric.

    The interval is over documents; the number of a document is its mean over layers and heads. For the metric ASKED
    these are the heads that look up the answer (LOOKS_UP).
    """
    rows = frames.experiments(run, "recall", "gates", "recall")
    looks_up = rows.asked_mass > LOOKS_UP
    rows = rows.assign(**{ASKED: rows.asked_kept.where(looks_up).astype(float)})
    lines = []
    for key, cell in rows.groupby(CELL, dropna=False, sort=False):
        line: dict[str, Any] = dict(zip(CELL, key)) | {"source": "measured", "unit": "share"}
        line |= {"status": cell.status.iloc[0], "reason": cell.reason.iloc[0]}
        line |= {"sparsity_realised": cell.sparsity_realised.mean()}
        for metric in METRICS:
            if metric == ASKED and pd.isna(line["task"]):
                continue
            documents = cell.groupby("document")[metric].mean().dropna()  # none for a refused method
            numbers = dict(zip(aggregates.NUMBERS, bootstrap.mean(documents))) if len(documents) else {}
            lines.append(line | numbers | {"metric": metric, "count": len(documents)})
    frame = frames.tidy(pd.DataFrame(lines).assign(label=str(labels.label(run, rows))))
    return table_format.ordered(frame, "context", "task", "metric", "sparsity_requested")


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per method and metric, with one column per requested sparsity."""
    frame = frame.assign(
        method_name=frame.apply(table_format.method_name, axis=1),
        length=frame.context.map(style.size),
        windows=frame.task.fillna("text"),
        quantity=frame.metric.map(METRICS),
    )
    lines = {"model": "model", "length": "context", "windows": "windows"}
    lines |= {"method_name": "method", "quantity": "quantity"}
    frame = frame.assign(place=frame.metric.map(list(METRICS).index))
    frame = frame.sort_values(["model", "context", "windows", "place"], kind="stable")
    return table_format.grid(frame, lines, "sparsity_requested", _cell, lambda sparsity: f"{sparsity:.2f}")


def chart(frame: pd.DataFrame) -> charts.Chart:
    """Return each quantity over the share of skipped blocks."""
    frame = frame.sort_values("context", ascending=False, kind="stable")
    windows = frame.task.fillna("text") + ", " + frame.context.map(style.size)
    points = charts.points(frame, panel=frame.metric.map(METRICS) + ": " + windows)
    kept = charts.Axis("share", charts.LINEAR, table_format.number)
    return charts.Chart(charts.SKIPPED, kept, "Right skips more and up finds more of the right blocks.", points)


def _cell(entry: pd.Series) -> str:
    return table_format.number(entry.value, entry.low, entry.high) + table_format.in_brackets(
        entry.sparsity_realised
    )


def remarks(frame: pd.DataFrame) -> list[str]:
    """Return how to read the cells."""
    notes = [
        "Block recall: share of the oracle's top-k blocks that the method also keeps. Kept mass: share of the "
        "row-normalised pooled attention map in the blocks that it keeps. [95% bootstrap interval over documents] "
        "(realised sparsity).",
        "Columns are requested sparsities. The paper has no such table.",
    ]
    if (frame.metric == ASKED).any():
        notes.append(
            "Asked block, asking row: in windows that are look-ups, how often the block row that asks keeps the "
            "block with the answer, in heads in which that block has more than "
            f"{LOOKS_UP} of the asking token's attention. Block recall and kept mass are averages over all rows "
            "and heads."
        )
    return notes
