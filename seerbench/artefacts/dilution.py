"""Table beyond the paper: how the look-ups of a gate depend on the number of rows in the asking block.

A gate pools the queries of a block, so a question of one row is mixed with the other rows of its block. The prompts
of the experiment `asking-rows` end at different places of a block and are otherwise alike. The gates are the same.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from seerbench.artefacts import aggregates, frames, labels, table_format
from seerbench.artefacts.table2 import window_tokens
from seerbench.rows import bootstrap
from seerbench.rows.store import Run

CELL = ["model", "corpus", "task", "method", "gate", "sparsity_requested", "threshold", "context"]
EXPERIMENT = "asking-rows"


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one line per setting and number of asking rows: the percentage of right look-ups beyond the window.

    The window is the one that as many blocks would make (`table2.window_tokens`); for dense attention it is the
    widest window of the other methods.
    """
    rows = frames.experiment(run, "tasks", EXPERIMENT, "tasks")
    asking = rows.dropna(subset="asking_rows").groupby("context").asking_rows.first()
    widest = float(rows.sparsity_requested.min())
    lines = []
    for key, cell in rows.groupby(CELL, dropna=False, sort=False):
        line: dict[str, Any] = dict(zip(CELL, key)) | {"source": "measured", "unit": "%", "metric": "accuracy"}
        line |= {"x": asking[line["context"]], "sparsity_realised": cell.sparsity_realised.mean()}
        line |= {"status": cell.status.iloc[0], "reason": cell.reason.iloc[0]}
        sparsity = widest if math.isnan(line["sparsity_requested"]) else line["sparsity_requested"]
        far = cell[cell.correct.notna() & (cell.distance >= window_tokens(sparsity, line["context"]))]
        if len(far):
            interval = bootstrap.proportion(int(far.correct.sum()), len(far))
            line |= {name: 100 * number for name, number in zip(aggregates.NUMBERS, interval)}
        lines.append(line | {"count": len(far)})
    frame = frames.tidy(pd.DataFrame(lines).assign(label=str(labels.label(run, rows))))
    return table_format.ordered(frame, "sparsity_requested", "x")


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per method, gate and sparsity, with one column per number of asking rows."""
    frame = frame.assign(
        method_name=frame.apply(table_format.method_name, axis=1),
        requested=frame.apply(table_format.requested, axis=1),
    )
    lines = {"model": "model", "task": "task", "method_name": "method", "requested": "sparsity"}
    return table_format.grid(frame, lines, "x", _cell, lambda rows: f"{rows:.0f}")


def _cell(entry: pd.Series) -> str:
    return table_format.number(entry.value, entry.low, entry.high)


def remarks(frame: pd.DataFrame) -> list[str]:
    """Return how to read the cells."""
    counts = sorted(int(count) for count in frame["count"].unique())
    return [
        "Percent correct [95% interval: Wilson's] of look-ups whose fact is beyond the window that as many blocks "
        f"would make ({counts[0]} to {counts[-1]} look-ups per cell). Every block row is sparse.",
        "Columns: how many rows of the prompt are in its last block. The last of them asks the question. A gate "
        "pools all of them, unless it does not pool queries. The paper has no such table.",
    ]
