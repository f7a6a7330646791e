"""Table 2: task accuracy in length buckets. The paper has LongBench-E; runs with small models have look-ups."""

from __future__ import annotations

from typing import Any

import pandas as pd

from seerbench.artefacts import aggregates, frames, labels, paper_numbers, table_format
from seerbench.rows import bootstrap, requests
from seerbench.rows.schema import REFUSED
from seerbench.rows.store import Run

CELL = ["model", "corpus", "method", "gate", "sparsity_requested", "threshold", "bucket", "context"]
MEAN = "mean over tasks"
EXPERIMENTS = ("longbench", "retrieval")  # The table shows the first of these that the run has.
SOLVED = (
    80.0  # Below this percentage in the shortest pass-key bucket, dense attention itself does not solve the task.
)


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one line per cell and task, and one per cell for the unweighted mean over tasks, in percent."""
    every = requests.rows(run, "tasks")
    name = next((name for name in EXPERIMENTS if (every.experiment == name).any()), EXPERIMENTS[-1])
    rows = frames.experiment(run, "tasks", name, "tasks")
    printed = paper_numbers.printed(paper, "table2").assign(task=MEAN)
    lines = _lookups(rows) if name == "retrieval" else _longbench(rows)
    measured = pd.DataFrame(lines).assign(label=str(labels.label(run, rows)))
    unmeasured = frames.unmeasured_methods(printed, measured).assign(task=MEAN)
    frame = frames.tidy(printed, measured, unmeasured, extra=["definition", "cut"])
    return table_format.ordered(frame, "sparsity_requested", "context", "bucket", "task")


def _lookups(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the proportions of right answers with Wilson's intervals."""
    lines = []
    for key, cell in rows.groupby(CELL, dropna=False, sort=False):
        line = _line(key, cell)
        answered = cell[cell.correct.notna()]
        if answered.empty:
            lines.append(line | _refused(cell))
            continue
        counts = {task: (int(part.correct.sum()), len(part)) for task, part in answered.groupby("task")}
        for task, count in counts.items():
            lines.append(line | {"task": task, "count": count[1]} | _percent(bootstrap.proportion(*count)))
        mean = bootstrap.mean_proportion(list(counts.values()))
        lines.append(line | {"task": MEAN, "count": len(answered)} | _percent(mean))
    return lines


def _longbench(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the means of the scores with bootstrap intervals. Prompts of one bucket have different lengths."""
    lines = []
    for key, cell in rows.assign(context=float("nan")).groupby(CELL, dropna=False, sort=False):
        line = _line(key, cell)
        scored = cell[cell.score.notna()]
        if scored.empty:
            lines.append(line | _refused(cell))
            continue
        scores = {task: part.score.to_numpy() for task, part in scored.groupby("task")}
        for task, values in scores.items():
            lines.append(line | {"task": task, "count": len(values)} | _percent(bootstrap.mean(values)))
        mean = bootstrap.mean_of_means(list(scores.values()))
        lines.append(line | {"task": MEAN, "count": len(scored)} | _percent(mean))
    for line in lines:
        line |= {"metric": "score", "definition": rows.definition.iloc[0], "cut": float(rows["cut"].mean())}
    return lines


def _line(key: tuple, cell: pd.DataFrame) -> dict[str, Any]:
    line: dict[str, Any] = dict(zip(CELL, key)) | {"source": "measured", "metric": "accuracy", "unit": "%"}
    return line | {"sparsity_realised": cell.sparsity_realised.mean(), "status": "measured", "reason": None}


def _refused(cell: pd.DataFrame) -> dict[str, Any]:
    """Return what a line says of a cell without any answer."""
    refused = {"status": REFUSED, "reason": cell.reason.iloc[0], "task": MEAN, "count": 0}
    return refused | _percent((float("nan"),) * 3)


def _percent(interval: bootstrap.Interval) -> dict[str, float]:
    return {name: 100 * number for name, number in zip(aggregates.NUMBERS, interval)}


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the means over tasks, with one column per bucket. The CSV has the single tasks."""
    frame = frame[frame.task == MEAN]
    frame = frame.assign(
        method_name=frame.apply(table_format.method_name, axis=1),
        requested=frame.apply(table_format.requested, axis=1),
    )
    lines = {"source": "source", "model": "model", "method_name": "method", "requested": "sparsity"}
    return table_format.grid(frame, lines, "bucket", _accuracy)


def _accuracy(entry: pd.Series) -> str:
    realised = "" if entry.method == "dense" else table_format.in_brackets(entry.sparsity_realised)
    return table_format.number(entry.value, entry.low, entry.high) + realised


def remarks(frame: pd.DataFrame) -> list[str]:
    """Return how to read the cells, and whether the tasks can tell methods apart at all."""
    tasks = [task for task in frame.task.unique() if task != MEAN]
    if "definition" in frame:
        measured = frame[frame.source == "measured"]
        edition, cut = measured.definition.dropna().iloc[0], measured["cut"].max()
        return [
            f"LongBench-E score in percent, unweighted mean over {len(tasks)} tasks ({', '.join(sorted(tasks))}) "
            "[95% bootstrap interval over questions, combined over tasks] (realised sparsity).",
            f"Task definitions: {edition}. {cut:.0%} of the prompts were cut in the middle to fit the model.",
            "Columns are the length buckets of the data set, in words. The paper's are the same.",
        ]
    notes = [
        f"Percent correct, unweighted mean over the tasks ({', '.join(sorted(tasks))}; the paper's are "
        "LongBench-E) [95% interval: Wilson's, combined over tasks] (realised sparsity).",
        "Columns are length buckets in tokens. The paper and the run have different tasks at different lengths, so "
        "their cells cannot be compared.",
    ]
    dense = frame[(frame.source == "measured") & (frame.method == "dense") & (frame.task == "passkey")]
    if dense.empty:
        return [*notes, "Dense attention was not scored on the pass-key task: methods cannot be told apart."]
    shortest = dense.sort_values("context").iloc[0]
    if shortest.value < SOLVED:
        notes.append(
            f"Dense attention solves only {shortest.value:.0f}% of the pass-key task in the shortest bucket "
            f"({shortest.bucket}), below {SOLVED:.0f}%: at this scale the table cannot tell methods apart."
        )
    return notes
