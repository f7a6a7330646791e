"""Table 2: task accuracy in length buckets. The paper's is LongBench-E, a small run's are retrieval tasks."""

from __future__ import annotations

import pandas as pd

from seerbench.artefacts import aggregates, frames, table_format
from seerbench.rows import bootstrap
from seerbench.rows.store import Run

CELL = ["model", "corpus", "method", "gate", "sparsity_requested", "bucket", "context"]
MEAN = "mean over tasks"
EXPERIMENTS = ("longbench", "retrieval")  # the first that a run has
SOLVED = 80.0  # percent of the shortest pass-key bucket below which dense itself does not look back


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """A line a cell and task, and one for the unweighted mean over tasks."""
    every = run.table("tasks")
    name = next((name for name in EXPERIMENTS if (every.experiment == name).any()), EXPERIMENTS[-1])
    rows = frames.experiment(run, "tasks", name, "tasks")
    printed = frames.printed(paper, "table2").assign(task=MEAN)
    lines = _retrieval(rows) if name == "retrieval" else _longbench(rows)
    measured = pd.DataFrame(lines).assign(label=frames.label(run, rows))
    missing = frames.absent(printed, measured).assign(task=MEAN)
    frame = frames.tidy(printed, measured, missing, extra=["definition", "cut"])
    return table_format.ordered(frame, "sparsity_requested", "context", "bucket", "task")


def _retrieval(rows: pd.DataFrame) -> list[dict]:
    """Right or wrong: proportions with Wilson's intervals."""
    lines = []
    for key, cell in rows.groupby(CELL, dropna=False, sort=False):
        line = _line(key, cell)
        counts = {task: (int(part.correct.sum()), len(part)) for task, part in cell.groupby("task")}
        for task, count in counts.items():
            lines.append(line | {"task": task, "count": count[1]} | _percent(bootstrap.proportion(*count)))
        whole = bootstrap.mean_proportion(list(counts.values()))
        lines.append(line | {"task": MEAN, "count": len(cell)} | _percent(whole))
    return lines


def _longbench(rows: pd.DataFrame) -> list[dict]:
    """Scores from 0 to 1: means with bootstrap intervals. Prompts have any length; the bucket stands for it."""
    lines = []
    for key, cell in rows.assign(context=float("nan")).groupby(CELL, dropna=False, sort=False):
        line = _line(key, cell)
        scored = cell[cell.score.notna()]
        if scored.empty:
            refused = {"status": "refused", "reason": cell.reason.iloc[0], "task": MEAN, "count": 0}
            lines.append(line | refused | _percent((float("nan"),) * 3))
            continue
        scores = {task: part.score.to_numpy() for task, part in scored.groupby("task")}
        for task, values in scores.items():
            lines.append(line | {"task": task, "count": len(values)} | _percent(bootstrap.mean(values)))
        whole = bootstrap.mean_of_means(list(scores.values()))
        lines.append(line | {"task": MEAN, "count": len(scored)} | _percent(whole))
    for line in lines:
        line |= {"metric": "score", "definition": rows.definition.iloc[0], "cut": float(rows["cut"].mean())}
    return lines


def _line(key: tuple, cell: pd.DataFrame) -> dict:
    line = dict(zip(CELL, key)) | {"source": "measured", "metric": "accuracy", "unit": "%"}
    return line | {"sparsity_realised": cell.sparsity_realised.mean(), "status": "measured", "reason": None}


def _percent(interval: bootstrap.Interval) -> dict[str, float]:
    return {name: 100 * part for name, part in zip(aggregates.NUMBERS, interval)}


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """The means over tasks, a column a bucket; single tasks stand in the CSV."""
    frame = frame[frame.task == MEAN]
    frame = frame.assign(
        shown_method=frame.apply(table_format.method, axis=1), asked=frame.apply(table_format.asked, axis=1)
    )
    lines = {"source": "source", "model": "model", "shown_method": "method", "asked": "sparsity"}
    return table_format.grid(frame, lines, "bucket", _accuracy)


def _accuracy(entry: pd.Series) -> str:
    realised = "" if entry.method == "dense" else table_format.share(entry.sparsity_realised)
    return table_format.number(entry.value, entry.low, entry.high) + realised


def remarks(frame: pd.DataFrame) -> list[str]:
    """How to read the cells, and whether the tasks can tell methods apart at all."""
    tasks = [task for task in frame.task.unique() if task != MEAN]
    if "definition" in frame:
        measured = frame[frame.source == "measured"]
        edition, cut = measured.definition.dropna().iloc[0], measured["cut"].max()
        return [
            f"LongBench-E score in percent, unweighted mean over {len(tasks)} tasks ({', '.join(sorted(tasks))}) "
            "[95% bootstrap interval over questions, combined over tasks] (realised sparsity).",
            f"Task definitions: {edition}. {cut:.0%} of the prompts were cut in the middle to fit the model.",
            "Columns are the data set's length buckets, in words; those of the paper are the same.",
        ]
    said = [
        f"Percent correct, mean over the tasks ({', '.join(sorted(tasks))}; the paper's: LongBench-E) "
        "[95% interval: Wilson's, combined over tasks] (realised sparsity).",
        "Columns are length buckets in tokens: the paper's and the run's are different tasks at different "
        "lengths and do not compare cell by cell.",
    ]
    dense = frame[(frame.source == "measured") & (frame.method == "dense") & (frame.task == "passkey")]
    if dense.empty:
        return [*said, "Dense attention was not scored on the pass-key task: methods cannot be told apart."]
    shortest = dense.sort_values("context").iloc[0]
    if shortest.value < SOLVED:
        said.append(
            f"Dense attention solves only {shortest.value:.0f}% of the pass-key task in the shortest bucket "
            f"({shortest.bucket}), below {SOLVED:.0f}%: at this scale the table cannot tell methods apart."
        )
    return said
