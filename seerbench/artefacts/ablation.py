"""Table beyond the paper: how the parts of a gate change what it loses.

The parts are block size, recipe, poolings and training text. The table has the loss of each gate of the experiment
`gates` on the same documents, and its score on look-ups where the run has tasks with that gate.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from seerbench.artefacts import aggregates, frames, labels, style, table_format
from seerbench.rows import bootstrap, requests
from seerbench.rows.store import Run

LOSS, LOOKUPS = "delta NLL", "correct"  # the metrics of the frame
CELL = ["model", "corpus", "method", "gate", "sparsity_requested"]


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one line per gate, sparsity and metric: delta NLL (nats per token) and the share of right look-ups."""
    rows = frames.experiment(run, "perplexity", "gates", "perplexity")
    losses = aggregates.perplexities(rows, aggregates.dense_rows(run, rows)).assign(metric=LOSS)
    losses = losses.assign(value=losses.delta, low=losses.delta_low, high=losses.delta_high, unit="nats")
    losses = losses[losses.method != "dense"].assign(label=str(labels.label(run, rows)))
    tasks = requests.rows(run, "tasks")
    tasks = tasks[(tasks.experiment == "retrieval") & tasks.gate.isin(losses.gate.unique())]
    lookups = [] if tasks.empty else [_lookups(tasks).assign(label=str(labels.label(run, tasks)))]
    return table_format.ordered(frames.tidy(losses, *lookups), "metric", "sparsity_requested")


def _lookups(tasks: pd.DataFrame) -> pd.DataFrame:
    """Return the share of right look-ups per gate and sparsity, as unweighted mean over tasks and contexts."""
    lines = []
    for key, cell in tasks.groupby(CELL, dropna=False, sort=False):
        answered = cell[cell.correct.notna()]
        if answered.empty:
            continue
        counts = [(int(part.correct.sum()), len(part)) for _, part in answered.groupby(["task", "context"])]
        line: dict[str, Any] = dict(zip(CELL, key)) | dict(
            zip(aggregates.NUMBERS, bootstrap.mean_proportion(counts))
        )
        line |= {"source": "measured", "status": "measured", "metric": LOOKUPS, "unit": "share"}
        lines.append(line | {"count": len(cell), "sparsity_realised": cell.sparsity_realised.mean()})
    return pd.DataFrame(lines)


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per gate, with one column per metric and requested sparsity."""
    frame = frame.assign(
        method_name=frame.apply(table_format.method_name, axis=1),
        column=[f"{metric}, {sparsity:.2f}" for metric, sparsity in zip(frame.metric, frame.sparsity_requested)],
    )
    frame = frame.sort_values(["metric", "sparsity_requested"], ascending=[False, True], kind="stable")
    cells = table_format.grid(frame, {"model": "model", "method_name": "gate"}, "column", _cell)
    return cells.sort_values("gate", kind="stable").reset_index(drop=True)


def _cell(entry: pd.Series) -> str:
    numbers = table_format.number(entry.value, entry.low, entry.high, sign=entry.metric == LOSS)
    return numbers + table_format.in_brackets(entry.sparsity_realised)


def remarks(frame: pd.DataFrame) -> list[str]:
    """Return how to read the cells."""
    contexts = ", ".join(style.size(context) for context in sorted(frame.context.dropna().unique()))
    return [
        f"Columns: the quantity and the requested sparsity. Delta NLL at {contexts}: nats per token above dense "
        "on the same documents [95% paired interval] (realised sparsity). correct: the share of look-ups "
        "answered correctly, unweighted mean over tasks and contexts [95% interval] (realised sparsity).",
        "Gates are named by gate job and gate set; the preset says what each is made of. The paper has no such "
        "table.",
    ]
