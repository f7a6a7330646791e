"""Table beyond the paper: the share of the oracle's blocks that each method keeps, at equal sparsity.

The oracle applies the top-k rule to the true pooled attention map. If a trained gate did not keep more of its
blocks than an untrained gate, StreamingLLM's fixed pattern and random blocks, its perplexity would say nothing
about the gate.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from seerbench.artefacts import aggregates, frames, labels, style, table_format
from seerbench.rows import bootstrap
from seerbench.rows.store import Run

CELL = ["model", "corpus", "context", "method", "gate", "sparsity_requested"]
METRICS = {"recall": "block recall", "mass": "kept mass"}


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one line per cell and metric.

    The interval is over documents; the number of a document is its mean over layers and heads.
    """
    rows = frames.experiment(run, "recall", "gates", "recall")
    lines = []
    for key, cell in rows.groupby(CELL, dropna=False, sort=False):
        line: dict[str, Any] = dict(zip(CELL, key)) | {"source": "measured", "unit": "share"}
        line |= {"status": cell.status.iloc[0], "reason": cell.reason.iloc[0]}
        line |= {"sparsity_realised": cell.sparsity_realised.mean()}
        for metric in METRICS:
            documents = cell.groupby("document")[metric].mean().dropna()  # none for a refused method
            numbers = dict(zip(aggregates.NUMBERS, bootstrap.mean(documents))) if len(documents) else {}
            lines.append(line | numbers | {"metric": metric, "count": len(documents)})
    frame = frames.tidy(pd.DataFrame(lines).assign(label=str(labels.label(run, rows))))
    return table_format.ordered(frame, "context", "metric", "sparsity_requested")


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per method and metric, with one column per requested sparsity."""
    frame = frame.assign(
        method_name=frame.apply(table_format.method_name, axis=1),
        length=frame.context.map(style.size),
        quantity=frame.metric.map(METRICS),
    )
    lines = {"model": "model", "length": "context", "method_name": "method", "quantity": "quantity"}
    frame = frame.sort_values(["model", "context", "metric"], ascending=[True, True, False], kind="stable")
    return table_format.grid(frame, lines, "sparsity_requested", _cell, lambda sparsity: f"{sparsity:.2f}")


def _cell(entry: pd.Series) -> str:
    return table_format.number(entry.value, entry.low, entry.high) + table_format.in_brackets(
        entry.sparsity_realised
    )


def remarks(frame: pd.DataFrame) -> list[str]:
    """Return how to read the cells."""
    return [
        "Block recall: share of the oracle's top-k blocks that the method also keeps. Kept mass: share of the "
        "row-normalised pooled attention map in the blocks that it keeps. [95% bootstrap interval over documents] "
        "(realised sparsity).",
        "Columns are requested sparsities. The paper has no such table.",
    ]
