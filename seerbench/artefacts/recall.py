"""Beyond the paper: how many of the oracle's blocks each method finds, at equal sparsity.

The oracle takes the top-k of the true pooled attention map. A trained gate must beat an untrained
one, StreamingLLM's fixed pattern and random blocks, or its perplexity says nothing about it.
"""

from __future__ import annotations

import pandas as pd

from seerbench.artefacts import aggregates, frames, style, table_format
from seerbench.rows import bootstrap
from seerbench.rows.store import Run

CELL = ["model", "corpus", "context", "method", "gate", "sparsity_requested"]
METRICS = {"recall": "block recall", "mass": "kept mass"}


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """A line a cell and metric; the interval is over documents (a document's mean over layers and heads)."""
    rows = frames.experiment(run, "recall", "gates", "recall")
    lines = []
    for key, cell in rows.groupby(CELL, dropna=False, sort=False):
        line = dict(zip(CELL, key)) | {"source": "measured", "status": "measured", "reason": None}
        line |= {"sparsity_realised": cell.sparsity_realised.mean(), "unit": "share"}
        for metric in METRICS:
            documents = cell.groupby("document")[metric].mean()
            numbers = dict(zip(aggregates.NUMBERS, bootstrap.mean(documents)))
            lines.append(line | numbers | {"metric": metric, "count": len(documents)})
    frame = frames.tidy(pd.DataFrame(lines).assign(label=frames.label(run, rows)))
    return table_format.ordered(frame, "context", "metric", "sparsity_requested")


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """One line a method and metric, one column a requested sparsity."""
    frame = frame.assign(
        shown_method=frame.apply(table_format.method, axis=1),
        length=frame.context.map(style.size),
        what=frame.metric.map(METRICS),
    )
    lines = {"model": "model", "length": "context", "shown_method": "method", "what": "quantity"}
    frame = frame.sort_values(["model", "context", "metric"], ascending=[True, True, False], kind="stable")
    return table_format.grid(frame, lines, "sparsity_requested", _cell, lambda sparsity: f"{sparsity:.2f}")


def _cell(entry: pd.Series) -> str:
    return table_format.number(entry.value, entry.low, entry.high) + table_format.share(entry.sparsity_realised)


def remarks(frame: pd.DataFrame) -> list[str]:
    """How to read the cells."""
    return [
        "Block recall: share of the oracle's top-k blocks that the method also keeps. Kept mass: share of "
        "the row-normalised pooled attention map. [95% bootstrap interval over documents] (realised sparsity).",
        "Columns are requested sparsities. The paper has no such table.",
    ]
