"""Figure beyond the paper: where in the text, and at which length, a method still finds a needle.

The needles are those of RULER's tasks that ask for one of them. A task that dense attention does not solve at some
length is left out at this length, since it would darken every map alike; where it solves none, all are shown.
"""

from __future__ import annotations

import math
import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from seerbench.artefacts import aggregates, colors, frames, gate_sets, labels, ruler, style, table_format
from seerbench.errors import MissingRows
from seerbench.rows import bootstrap
from seerbench.rows.store import Run

# Parts of the haystack that are told apart. With ten, a cell of 25 examples per task would be mostly noise.
BINS = 5
SHARE = 100 / BINS  # percent of the haystack per cell
SETTING = ["last_rows_dense", "sparsity_requested", "threshold"]  # what one column of maps has in common
UNKNOWN = "0.85"  # the gray of a cell without needles


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one line per arm, length and part of the haystack: percent of needles found, with Wilson's interval.

    Raises MissingRows if no row has the depth of a needle.
    """
    rows = ruler.with_protocol(frames.experiments(run, "tasks", "ruler", "tasks"))
    solved = ruler.solved_tasks(rows)
    rows = rows[rows.depth.notna()]
    if rows.empty:
        raise MissingRows("tasks", "rows of needles with their depth", "tasks PRESET ruler", run.folder)
    needles = {key: set(part.task) for key, part in rows.groupby(["model", "context"])}
    counted = {key: tasks & solved.get(key, tasks) or tasks for key, tasks in needles.items()}
    rows = rows[[task in counted[key] for key, task in zip(zip(rows.model, rows.context), rows.task)]]
    lines = []
    for key, cell in rows.groupby(ruler.CELL, dropna=False, sort=False):
        line: dict[str, Any] = dict(zip(ruler.CELL, key)) | {"source": "measured", "metric": "found", "unit": "%"}
        line |= {"task": ", ".join(sorted(cell.task.unique())), "sparsity_realised": cell.sparsity_realised.mean()}
        scored = cell[cell.score.notna()]
        if scored.empty:
            lines.append(line | {"status": ruler.REFUSED, "reason": cell.reason.iloc[0], "count": 0})
            continue
        for place, part in scored.groupby((scored.depth * BINS).astype(int).clip(upper=BINS - 1)):
            found = bootstrap.proportion(int((part.score == 1).sum()), len(part))
            numbers = {name: 100 * number for name, number in zip(aggregates.NUMBERS, found)}
            depth = {"depth": SHARE * (place + 0.5), "count": len(part), "status": "measured", "reason": None}
            lines.append(line | numbers | depth)
    frame = pd.DataFrame(lines).assign(label=str(labels.label(run, rows)))
    frame = frames.tidy(frame, extra=["last_rows_dense", "depth"])
    return table_format.ordered(frame, "last_rows_dense", "sparsity_requested", "context", "depth")


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one map per arm: lengths to the right, depths downwards, needles found as color.

    Each line has the arms of one method, dense attention first; each column has one sparsity and protocol.
    """
    frame = frame.assign(setting=frame.apply(_setting, axis=1))
    frame = frame.assign(line=_lines(frame))
    lines = list(dict.fromkeys(frame.line))
    settings = _settings(frame)
    contexts = sorted(frame.context.unique())
    fig, axes = style.figure(
        len(lines), len(settings), 1.2 + 0.85 * len(lines), sharex=True, sharey=True, squeeze=False
    )
    drawn, titled = None, set()
    for place, ax in enumerate(axes):
        name, setting = lines[place // len(settings)], settings[place % len(settings)]
        cells = frame[(frame.line == name) & (frame.setting == setting)]
        if setting == settings[0]:
            dense = frame[(frame.line == name) & (frame.method == "dense")]
            cells = cells if dense.empty else dense
            ax.set_ylabel(textwrap.fill(name, 16), fontsize=6)
        if cells.empty:  # nothing but the name of its line, if it is the first
            ax.set_frame_on(False)
            ax.grid(False)
            ax.tick_params(left=False, labelleft=False, bottom=False, labelbottom=False)
            continue
        drawn = ax.imshow(_map(cells, contexts), cmap="viridis", vmin=0, vmax=100, aspect="auto")
        ax.set_facecolor(UNKNOWN)
        ax.grid(False)
        if cells.method.iloc[0] != "dense" and setting not in titled:
            titled.add(setting)
            ax.set_title(setting.replace(", ", "\n"), fontsize=6)
        for context in cells[cells.value.isna()].context:
            ax.text(contexts.index(context), (BINS - 1) / 2, "x", ha="center", va="center")
    axes[0].set_yticks([-0.5, BINS - 0.5], ["0%", "100%"])
    axes[0].set_xticks(range(len(contexts)), [style.size(context) for context in contexts])
    for ax in axes:
        ax.tick_params(labelsize=6)
    fig.colorbar(drawn, ax=list(axes), label="needles found (%)", shrink=min(1.0, 3 / len(lines)))
    style.caption(fig, frame, *_notes(frame))
    return fig


def _lines(frame: pd.DataFrame) -> pd.Series:
    """Return the name of each arm's line, as short as keeps any two arms of one length apart.

    The shortest has the method with its gate set, or with its configuration where it chooses its own sparsity: a
    model that is extended to longer lengths, and gates trained for it, continue the maps of the first model.
    """
    own = frame.gate.where(frame.sparsity_requested.isna())
    short = frame.gate.map(gate_sets.set_of).fillna(own)
    names = pd.Series([colors.display(*each) for each in zip(frame.method, short)], frame.index)
    full = pd.Series([colors.display(*each) for each in zip(frame.method, frame.gate)], frame.index)
    for each in (names, full):
        if not frame.assign(line=each).duplicated(["line", "method", "setting", "context", "depth"]).any():
            return each
    return frame.model + ": " + full


def _settings(frame: pd.DataFrame) -> list[str]:
    """Return what the columns of maps have in common; those at a requested sparsity first."""
    sparse = frame[frame.method != "dense"]
    ordered = sparse.assign(own=sparse.sparsity_requested.isna()).sort_values(["own", *SETTING], kind="stable")
    return list(dict.fromkeys(ordered.setting)) or list(dict.fromkeys(frame.setting))


def _setting(entry: pd.Series) -> str:
    """Return sparsity and protocol of an arm: `sparsity 0.50, all rows sparse`."""
    rows = f"last {entry.last_rows_dense:.0f} rows dense" if entry.last_rows_dense else "all rows sparse"
    return f"sparsity {table_format.requested(entry)}, {rows}"


def _notes(frame: pd.DataFrame) -> list[str]:
    """Return which needles of which models are counted, and how many."""
    by_tasks: dict[str, list[str]] = {}
    for (model, context), part in frame.groupby(["model", "context"]):
        by_tasks.setdefault(part.task.iloc[0], []).append(f"{model} at {style.size(context)}")
    tasks = [f"{tasks} ({', '.join(where)})" for tasks, where in by_tasks.items()]
    counts = frame["count"][frame.value.notna()]
    return [
        "To the right: length. Downwards: depth of the needle. Columns: sparsity and protocol. Gray: no needle.",
        f"Needles of {'; '.join(tasks)}: the tasks of which dense attention solves at least {ruler.SOLVED:.0f}%, "
        "or all if it solves none.",
        f"{counts.min():.0f} to {counts.max():.0f} needles per cell; intervals are in the CSV. The paper has no "
        "such figure.",
    ]


def _map(cells: pd.DataFrame, contexts: list[float]) -> np.ndarray:
    """Return the percentages of one arm as a map [depths, lengths], with NaN where it has none."""
    square = np.full((BINS, len(contexts)), math.nan)
    known = cells[cells.value.notna()]
    for depth, context, value in zip(known.depth, known.context, known.value):
        square[int(depth // SHARE), contexts.index(context)] = value
    return square
