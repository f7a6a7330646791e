"""Table 2: task accuracy in length buckets. The paper has LongBench-E; runs with small models have look-ups.

The table has each method with every row sparse, and with the last block rows dense where a run measured that: the
two protocols rank methods differently, because a look-up is asked for by the last rows of its prompt.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from seerbench.artefacts import ablation, aggregates, colors, frames, labels, paper_numbers, table_format
from seerbench.artefacts import chart as charts
from seerbench.rows import bootstrap, requests
from seerbench.rows.schema import REFUSED
from seerbench.rows.store import Run

CELL = [
    "model",
    "corpus",
    "method",
    "gate",
    "sparsity_requested",
    "threshold",
    "last_rows_dense",
    "bucket",
    "context",
]
MEAN = "mean over tasks"
EXPERIMENTS = ("longbench", "retrieval")  # The table shows the first of these that the run has.
SOLVED = (
    80.0  # Below this percentage in the shortest pass-key bucket, dense attention itself does not solve the task.
)
# What a reader must know of tasks whose question is not at the end of the prompt.
ASKED_ELSEWHERE = {
    "midtext": "midtext: questions in the middle of the text, far from their facts; dense last rows cannot help.",
    "two-questions": "two-questions: the second question follows the prompt; it and its answer attend densely.",
}
# The reach of a line: facts within the window that the same number of blocks would make, or beyond it.
WITHIN, BEYOND = "within", "beyond"
REACHED = ("passkey", "kv", "kv-shared")  # tasks whose question ends the prompt and whose fact is in one place
SPARSE, DENSE = "sparse", "dense"  # the last block rows


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one line per cell and task, and one per cell for the unweighted mean over tasks, in percent."""
    every = requests.rows(run, "tasks")
    name = next((name for name in EXPERIMENTS if (every.experiment == name).any()), EXPERIMENTS[-1])
    rows = frames.experiment(run, "tasks", name, "tasks")
    # A column says that the last rows are dense, so the method's name need not.
    names = rows.method.str.replace(r"\+last\d+", "", regex=True)
    rows = rows.assign(method=names, last_rows_dense=rows.last_rows_dense.fillna(0))
    printed = paper_numbers.printed(paper, "table2").assign(task=MEAN)
    lines = _lookups(rows) if name == "retrieval" else _longbench(rows)
    measured = pd.DataFrame(lines).assign(label=str(labels.label(run, rows)))
    unmeasured = frames.unmeasured_methods(printed, measured).assign(task=MEAN)
    frame = frames.tidy(
        printed, measured, unmeasured, extra=["last_rows_dense", "reach", "protocol", "definition", "cut"]
    )
    return table_format.ordered(
        frame, "last_rows_dense", "sparsity_requested", "context", "bucket", "task", "reach"
    )


def _lookups(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the proportions of right answers with Wilson's intervals."""
    lines = []
    for key, cell in rows.groupby(CELL, dropna=False, sort=False):
        line = _line(key, cell)
        answered = cell[cell.correct.notna()]
        if answered.empty:
            lines.append(line | _refused(cell))
            continue
        line |= {"protocol": ablation.GENERATED if answered.prediction.notna().any() else ablation.GIVEN}
        counts = {task: (int(part.correct.sum()), len(part)) for task, part in answered.groupby("task")}
        for task, count in counts.items():
            lines.append(line | {"task": task, "count": count[1]} | _percent(bootstrap.proportion(*count)))
        lines += [line | part for part in _by_reach(line, answered)]
        mean = bootstrap.mean_proportion(list(counts.values()))
        lines.append(line | {"task": MEAN, "count": len(answered)} | _percent(mean))
    return lines


def _by_reach(line: dict[str, Any], answered: pd.DataFrame) -> list[dict[str, Any]]:
    """Return what a line says of look-ups within the window of the same number of blocks, and beyond it, by task.

    A dense method has no such window (`window_tokens`), and no such lines.
    """
    sparsity = line["sparsity_requested"]
    sparsity = line["sparsity_realised"] if math.isnan(sparsity) else sparsity
    if not sparsity:
        return []
    reach = (answered.distance < window_tokens(sparsity, line["context"])).map({True: WITHIN, False: BEYOND})
    lines = []
    for (task, name), part in answered.groupby(["task", reach]):
        counts = (int(part.correct.sum()), len(part))
        lines.append({"task": task, "reach": name, "count": counts[1]} | _percent(bootstrap.proportion(*counts)))
    return lines


def window_tokens(sparsity: float, context: float) -> float:
    """Return the width of the window that the budget of a row would make, in tokens.

    The top-k rule keeps 1 - sqrt(sparsity) of the blocks of the context in a row (core.top_k.top_k_count).
    StreamingLLM spends one of these blocks on the sink, so its window is a block shorter.
    """
    return (1 - math.sqrt(sparsity)) * context


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
    line |= {"sparsity_realised": cell.sparsity_realised.mean(), "reach": None}
    return line | {"status": "measured", "reason": None}


def _refused(cell: pd.DataFrame) -> dict[str, Any]:
    """Return what a line says of a cell without any answer."""
    refused = {"status": REFUSED, "reason": cell.reason.iloc[0], "task": MEAN, "count": 0}
    return refused | _percent((float("nan"),) * 3)


def _percent(interval: bootstrap.Interval) -> dict[str, float]:
    return {name: 100 * number for name, number in zip(aggregates.NUMBERS, interval)}


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the means over tasks, with one column per bucket; of look-ups also each task in the longest bucket.

    The CSV has the single tasks in every bucket, with their intervals.
    """
    frame = frame[frame.reach.isna()]
    means = frame[frame.task == MEAN]
    measured = frame[frame.source == "measured"]
    of_tasks = measured[(measured.task != MEAN) & (measured.context == measured.context.max())]
    shown = pd.concat(
        [means.assign(column=means.bucket), of_tasks.assign(column=of_tasks.task + ", " + of_tasks.bucket)]
    )
    shown = shown.assign(
        method_name=shown.apply(table_format.method_name, axis=1),
        requested=shown.apply(table_format.requested, axis=1),
        last_rows=shown.apply(_last_rows, axis=1),
    )
    lines = {"source": "source", "model": "model", "method_name": "method", "requested": "sparsity"}
    return table_format.grid(shown, lines | {"last_rows": "last rows"}, "column", _accuracy)


def chart(frame: pd.DataFrame) -> charts.Chart:
    """Return the means over tasks over the share of skipped blocks, the longest bucket first."""
    means = frame[(frame.source == "measured") & (frame.task == MEAN) & frame.reach.isna()]
    means = means.sort_values("context", ascending=False, kind="stable")
    return charts.scores(means, means.bucket, means.apply(_last_rows, axis=1))


def _last_rows(entry: pd.Series) -> str:
    """Return whether the last block rows of a line are sparse or dense; empty for dense methods and the paper."""
    if entry.method == "dense" or math.isnan(entry.last_rows_dense):
        return ""
    return DENSE if entry.last_rows_dense else SPARSE


def _accuracy(entry: pd.Series) -> str:
    if entry.task != MEAN:
        return f"{entry.value:.0f}"
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
            *_of_last_rows(frame),
        ]
    notes = [
        f"Percent correct, unweighted mean over the tasks ({', '.join(sorted(tasks))}; the paper's are "
        "LongBench-E) [95% interval: Wilson's, combined over tasks] (realised sparsity). Columns with a task: "
        "percent correct of that task.",
        "Columns are length buckets in tokens. The paper and the run have different tasks at different lengths, so "
        "their cells cannot be compared.",
        ablation.answers(frame),
        *(text for task, text in ASKED_ELSEWHERE.items() if task in tasks),
        *_of_last_rows(frame),
        *_of_reach(frame),
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


def _of_last_rows(frame: pd.DataFrame) -> list[str]:
    """Return whose protocol dense last rows are, if the frame has any."""
    if not (frame.last_rows_dense > 0).any():
        return []
    return [
        f"Last rows {DENSE}: the last block rows of every head read every key. A method with a requested "
        "sparsity pays for them from its budget. A question at the end of a prompt is in these rows. The authors' "
        "task evaluations of version 2 keep two dense rows and decode with dense attention; their perplexities "
        f"keep none, and the code of version 1 had no such switch. Last rows {SPARSE}: the method chooses the "
        "blocks of all rows."
    ]


def _of_reach(frame: pd.DataFrame) -> list[str]:
    """Return how many look-ups are right within the window of the same budget, and how many beyond it."""
    longest = frame[frame.context == frame[frame.reach.notna()].context.max()]
    lines = longest[longest.reach.notna() & longest.task.isin(REACHED) & (longest.last_rows_dense == 0)]
    found = []
    for key, part in lines.groupby(["method", "gate", "sparsity_requested"], dropna=False, sort=False):
        method, gate, sparsity = key
        percent = {
            name: (each.value * each["count"]).sum() / each["count"].sum() for name, each in part.groupby("reach")
        }
        numbers = " / ".join(f"{percent[name]:.0f}" if name in percent else "-" for name in (WITHIN, BEYOND))
        found.append(f"{colors.display(method, gate)} {sparsity:.0%} {numbers}")
    if not found:
        return []
    return [
        f"Percent correct of {' and '.join(REACHED)} in the longest bucket, last rows {SPARSE}, where the fact is "
        f"within / beyond the window that as many blocks would make: {'; '.join(found)}."
    ]
