"""Table beyond the paper: RULER's scores by task and length, their mean, and the length that a method is good for.

The mean is over the tasks that a run has, and a remark says which of RULER's 13 are missing. A task that dense
attention does not solve tells nothing about a method, so a second mean, for rankings, leaves such tasks out.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from seerbench.artefacts import aggregates, frames, labels, style, table_format
from seerbench.artefacts import chart as charts
from seerbench.data.ruler.tasks import TASKS
from seerbench.rows import bootstrap
from seerbench.rows.schema import REFUSED
from seerbench.rows.store import Run

CELL = ["model", "corpus", "method", "gate", "sparsity_requested", "threshold", "last_rows_dense", "context"]
MEAN, MEAN_OF_SOLVED = "mean", "mean of solved"
MEANS = (MEAN, MEAN_OF_SOLVED)
SOLVED = 25.0  # percent of dense attention, below which a task is left out of the mean for rankings
EFFECTIVE = 85.6  # percent; RULER's threshold of an effective length, the score of Llama-2-7B-chat at 4k
SPARSE, DENSE = "sparse", "dense"  # the last block rows


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one line per cell and task in percent, and two per cell for the means over tasks.

    Intervals are over examples, and of means combined over tasks.
    """
    rows = with_protocol(frames.experiments(run, "tasks", "ruler", "tasks"))
    solved = solved_tasks(rows)
    lines = []
    for key, cell in rows.groupby(CELL, dropna=False, sort=False):
        line: dict[str, Any] = dict(zip(CELL, key)) | {"source": "measured", "metric": "score", "unit": "%"}
        scores = {}
        for task, part in cell.groupby("task", sort=False):
            scored = part.score.dropna().to_numpy(float)
            of_task = line | {"task": task, "sparsity_realised": part.sparsity_realised.mean()}
            if not len(scored):
                lines.append(of_task | _refused(part.reason.iloc[0]))
                continue
            scores[task] = scored
            lines.append(of_task | _percent(bootstrap.mean(scored)) | {"count": len(scored)})
        line |= {"sparsity_realised": cell.sparsity_realised.mean()}
        answered, every = set(scores), set(cell.task)
        ranked = every & solved.get((line["model"], line["context"]), every)
        lines.append(line | {"task": MEAN} | _mean(scores, every, answered))
        if ranked:
            lines.append(line | {"task": MEAN_OF_SOLVED} | _mean(scores, ranked, answered))
    frame = pd.DataFrame(lines).assign(label=str(labels.label(run, rows)))
    frame = frames.tidy(frame.assign(place=frame.task.map(_place)), extra=["last_rows_dense", "place"])
    return table_format.ordered(frame, "last_rows_dense", "sparsity_requested", "context", "place")


def with_protocol(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the number of dense last rows in its column alone, and not in the method's name."""
    names = rows.method.str.replace(r"\+last\d+", "", regex=True)
    return rows.assign(method=names, last_rows_dense=rows.last_rows_dense.fillna(0))


def solved_tasks(rows: pd.DataFrame) -> dict[tuple[str, int], set[str]]:
    """Return the tasks of which dense attention solves at least SOLVED percent, by model and length."""
    dense = rows[(rows.method == "dense") & rows.score.notna()]
    means = dense.groupby(["model", "context", "task"]).score.mean()
    found: dict[tuple[str, int], set[str]] = {}
    for (model, context, task), score in means.items():
        tasks = found.setdefault((model, context), set())
        if 100 * score >= SOLVED:
            tasks.add(task)
    return found


def _mean(scores: dict[str, Any], wanted: set[str], answered: set[str]) -> dict[str, Any]:
    """Return the mean over the wanted tasks; refused where one of them has no answer, since means must compare."""
    if wanted - answered:
        return _refused(f"no answers for {', '.join(sorted(wanted - answered))}")
    count = sum(len(scores[task]) for task in wanted)
    return _percent(bootstrap.mean_of_means([scores[task] for task in sorted(wanted)])) | {"count": count}


def _refused(reason: str) -> dict[str, Any]:
    return _percent((math.nan,) * 3) | {"count": 0, "status": REFUSED, "reason": reason}


def _percent(interval: bootstrap.Interval) -> dict[str, Any]:
    numbers = {name: 100 * number for name, number in zip(aggregates.NUMBERS, interval)}
    return numbers | {"status": "measured", "reason": None}


def _place(task: str) -> int:
    """Return the place of a column: the means first, then the tasks in RULER's order."""
    return MEANS.index(task) if task in MEANS else len(MEANS) + list(TASKS).index(task_of(task))


def task_of(name: str) -> str:
    """Return RULER's name of a task in rows, which may carry that of a corpus."""
    return max((task for task in TASKS if name == task or name.startswith(f"{task}-")), key=len)


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per model, length, method and sparsity, with a column for each mean and task."""
    shown = frame.sort_values(["model", "corpus", "context"], kind="stable")
    names = {place: ", ".join(part.task.unique()) for place, part in frame.groupby("place")}
    shown = shown.assign(
        length=shown.context.map(style.size),
        method_name=shown.apply(table_format.method_name, axis=1),
        requested=shown.apply(table_format.requested, axis=1),
        last_rows=shown.apply(_last_rows, axis=1),
    )
    lines = {"model": "model", "corpus": "text", "length": "length", "method_name": "method"}
    lines |= {"requested": "sparsity", "last_rows": "last rows"}
    return table_format.grid(shown, lines, "place", _cell, lambda place: names[place].removeprefix("niah_"))


def chart(frame: pd.DataFrame) -> charts.Chart:
    """Return the means over all tasks over the share of skipped blocks, the longest length first."""
    means = frame[frame.task == MEAN].sort_values("context", ascending=False, kind="stable")
    places = means.model + ", " + means.corpus + ", " + means.context.map(style.size)
    return charts.scores(means, places, means.apply(_last_rows, axis=1))


def _last_rows(entry: pd.Series) -> str:
    """Return whether the last block rows of a line are sparse or dense; empty for dense methods."""
    if entry.method == "dense":
        return ""
    return DENSE if entry.last_rows_dense else SPARSE


def _cell(entry: pd.Series) -> str:
    if entry.task not in MEANS:
        return f"{entry.value:.0f}"
    realised = entry.sparsity_realised if entry.task == MEAN and entry.method != "dense" else math.nan
    return table_format.number(entry.value, entry.low, entry.high) + table_format.in_brackets(realised)


def remarks(frame: pd.DataFrame) -> list[str]:
    """Return how to read the cells, which tasks are missing or not solved, and the effective lengths."""
    names = [task for task in frame.task.unique() if task not in MEANS]
    found = {task_of(name) for name in names}
    missing = [task for task in TASKS if task not in found]
    notes = [
        "RULER's score in percent, the share of the right answers that are part of the generated text [95% "
        "bootstrap interval over examples, combined over tasks] (realised sparsity).",
        f"The mean is over {len(found)} of RULER's 13 tasks"
        + (f" (without {', '.join(missing)}): not RULER's average." if missing else "."),
    ]
    replaced = sorted({name.removeprefix(f"{task_of(name)}-") for name in names if name != task_of(name)})
    if replaced:
        notes.append(f"Tasks with {', '.join(replaced)} in their name have this text in place of RULER's essays.")
    notes += [*_unsolved(frame), *_effective(frame)]
    if (frame.last_rows_dense > 0).any():
        notes.append(
            f"Last rows {DENSE}: the last block rows, where the question is, read every key, within the budget. "
            f"Last rows {SPARSE}: the method chooses the blocks of all rows. Answers "
            "are decoded with dense attention."
        )
    return notes


def _unsolved(frame: pd.DataFrame) -> list[str]:
    """Return which tasks dense attention does not solve, by model and length."""
    dense = frame[(frame.method == "dense") & ~frame.task.isin(MEANS)]
    if dense.empty:
        return ["Dense attention was not scored: no task is known to be solved, and both means are the same."]
    parts = [
        f"{model} at {style.size(context)}: {', '.join(cell.task)}"
        for (model, context), cell in dense[dense.value < SOLVED].groupby(["model", "context"])
    ]
    if not parts:
        return [f"Dense attention scores at least {SOLVED:.0f}% in every task."]
    return [
        f"Dense attention scores below {SOLVED:.0f}% in ({'; '.join(parts)}). Such tasks are shown; "
        f"`{MEAN_OF_SOLVED}`, for rankings, leaves them out."
    ]


def _effective(frame: pd.DataFrame) -> list[str]:
    """Return the longest length at which each method has RULER's threshold."""
    means = frame[(frame.task == MEAN) & (frame.value >= EFFECTIVE)]
    reached = []
    for _, cell in means.groupby([name for name in CELL if name != "context"], dropna=False, sort=False):
        best = cell.loc[cell.context.idxmax()]
        method = [best.model, table_format.method_name(best), table_format.requested(best), _last_rows(best)]
        reached.append(" ".join(part for part in [*method, style.size(best.context)] if part))
    return [
        f"Effective length (the longest that was measured with a mean of at least {EFFECTIVE}): "
        f"{'; '.join(reached) if reached else 'none of any method'}."
    ]
