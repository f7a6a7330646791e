"""Beyond the paper: what a gate is made of - block size, recipe, poolings, training text - and what it changes.

Loss of each gate of the experiment `gates` on the same documents, and its retrieval where the tasks have the gate.
"""

from __future__ import annotations

import pandas as pd

from seerbench.artefacts import aggregates, frames, style, table_format
from seerbench.rows import bootstrap
from seerbench.rows.store import Run

RETRIEVAL = "correct"


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """A line a gate, sparsity and metric: delta NLL (nats), and the share of look-ups that are right."""
    rows = frames.experiment(run, "perplexity", "gates", "perplexity")
    losses = aggregates.perplexities(rows, aggregates.dense_rows(run, rows)).assign(metric="delta NLL")
    losses = losses.assign(value=losses.delta, low=losses.delta_low, high=losses.delta_high, unit="nats")
    losses = losses[losses.method != "dense"].assign(label=frames.label(run, rows))
    tasks = run.table("tasks")
    tasks = tasks[(tasks.experiment == "retrieval") & tasks.gate.isin(losses.gate.unique())]
    found = [] if tasks.empty else [_retrieved(tasks).assign(label=frames.label(run, tasks))]
    return table_format.ordered(frames.tidy(losses, *found), "metric", "sparsity_requested")


def _retrieved(tasks: pd.DataFrame) -> pd.DataFrame:
    """A line a gate and sparsity: the unweighted mean over tasks and lengths of the share that is right."""
    lines = []
    key = ["model", "corpus", "method", "gate", "sparsity_requested"]
    for names, cell in tasks.groupby(key, dropna=False, sort=False):
        parts = [(int(part.correct.sum()), len(part)) for _, part in cell.groupby(["task", "context"])]
        numbers = dict(zip(aggregates.NUMBERS, bootstrap.mean_proportion(parts)))
        about = {"source": "measured", "status": "measured", "metric": RETRIEVAL, "unit": "share"}
        realised = cell.sparsity_realised.mean()
        lines.append(dict(zip(key, names)) | numbers | about | {"count": len(cell), "sparsity_realised": realised})
    return pd.DataFrame(lines)


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """One line a gate, a column a metric and requested sparsity."""
    frame = frame.assign(
        shown_method=frame.apply(table_format.method, axis=1),
        column=[f"{metric}, {sparsity:.2f}" for metric, sparsity in zip(frame.metric, frame.sparsity_requested)],
    )
    frame = frame.sort_values(["metric", "sparsity_requested"], ascending=[False, True], kind="stable")
    shown = table_format.grid(frame, {"model": "model", "shown_method": "gate"}, "column", _cell)
    return shown.sort_values("gate", kind="stable").reset_index(drop=True)


def _cell(entry: pd.Series) -> str:
    loss = entry.metric != RETRIEVAL
    return table_format.number(entry.value, entry.low, entry.high, sign=loss) + table_format.share(
        entry.sparsity_realised
    )


def remarks(frame: pd.DataFrame) -> list[str]:
    """How to read the cells."""
    contexts = ", ".join(style.size(context) for context in sorted(frame.context.dropna().unique()))
    return [
        f"Delta NLL at {contexts}: nats a token above dense on the same documents [95% paired interval] (realised "
        "sparsity). correct: look-ups answered right, unweighted mean over tasks and lengths [95% interval].",
        "Gates are named by job and set; the preset says what each is made of. The paper has no such table.",
    ]
