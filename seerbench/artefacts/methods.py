"""Beyond the paper: every method of the timing sweep in one table, what it plans, what it attends, and both.

A method that refused or failed keeps its line, with the reason. Figures 5 and 6 draw the same rows without the
two bounds: the oracle, whose plan is the whole attention, and random blocks.
"""

from __future__ import annotations

import pandas as pd

from seerbench.artefacts import aggregates, colors, frames, style, table_format
from seerbench.rows.store import Run

PARTS = ("plan", "attend", "total")
PLACE = ["method", "sparsity_requested", "context"]
TIME, FASTER = "plan + attend; both as one, ms", "speed-up over dense; over the fastest dense"
AGAINST = ("reference", "fastest")


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """A line a method, cell and stage (median ms, quartiles), and the speed-ups of the whole over dense methods.

    A dense method is in many cells and plans nothing: one line a context, its attend.
    """
    cells, samples = frames.timed(run, "methods")
    dense = cells.apply(aggregates.is_dense, axis=1)
    times = aggregates.latencies(cells[~dense], samples)
    parts = [aggregates.dense_latencies(cells, samples), times[times.stage.isin(PARTS) | times.stage.isna()]]
    for against in AGAINST:
        faster = aggregates.speedups(cells[cells.status == "measured"], samples, "total", against)
        parts.append(faster.assign(metric=f"speedup over {against}"))
    frame = frames.tidy(*parts).drop_duplicates([*PLACE, "metric", "stage"])
    frame = frame.merge(cells[[*PLACE, "gate"]].drop_duplicates(PLACE), on=PLACE, how="left")
    nothing = frame.method.isin(cells.method[dense])
    frame = frame.assign(
        label=frames.label(run, cells, timed=True), series=nothing.map({True: "dense", False: None})
    )
    return frames.tidy(table_format.ordered(frame, "sparsity_requested", "context"))


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """Two lines a method and sparsity, times and speed-ups; one column a context."""
    lines = []
    for _, group in frame.groupby(PLACE, sort=False, dropna=False):
        first = group.iloc[0]
        times, faster = (group[(group.metric == "latency") == kind] for kind in (True, False))
        lines.append({**first, "what": TIME, "text": _times(times, first)})
        if len(faster):
            lines.append({**first, "what": FASTER, "text": _speedups(faster)})
    shown = pd.DataFrame(lines)
    shown["shown_method"] = shown.apply(table_format.method, axis=1)
    shown["asked"] = shown.apply(lambda entry: "" if entry.series == "dense" else table_format.asked(entry), axis=1)
    rows = {"shown_method": "method", "asked": "sparsity asked", "what": "quantity"}
    return table_format.grid(shown, rows, "context", lambda entry: entry.text, style.size)


def _times(times: pd.DataFrame, first: pd.Series) -> str:
    """ "1.51 + 28.4; 30.9 (0.90)": plan, attend, both as one, realised sparsity; of a dense method its attend."""
    ms = times.dropna(subset="stage").set_index("stage").value
    if set(PARTS) <= set(ms.index):
        text = f"{ms['plan']:.3g} + {ms['attend']:.3g}; {ms['total']:.3g}"
    else:
        text = "; ".join(f"{value:.3g}" for value in ms)
    return text + table_format.share(first.sparsity_realised)


def _speedups(faster: pd.DataFrame) -> str:
    """ "14.0x; 7.9x cuDNN"."""
    by = faster.drop_duplicates("metric").set_index("metric")
    said = []
    for against in AGAINST:
        name = f"speedup over {against}"
        if name in by.index and pd.notna(by.value[name]):
            base = f" {colors.display(by.base[name])}" if against == "fastest" else ""
            said.append(f"{by.value[name]:.3g}x{base}")
    return "; ".join(said)


def remarks(frame: pd.DataFrame) -> list[str]:
    """How to read the cells, and what the inputs were."""
    bases = ", ".join(
        colors.display(base) for base in frame[frame.metric == f"speedup over {AGAINST[0]}"].base.dropna().unique()
    )
    inputs = frame[frame.model.notna()].groupby("model").context.unique()
    said = "; ".join(f"{name} ({', '.join(map(style.size, sorted(at)))})" for name, at in inputs.items())
    return [
        "Median ms of planning, of attention alone, and of both as one call (which is not their sum): (realised "
        f"sparsity). Speed-ups are medians over rounds of dense / method, planning included; dense is {bases}.",
        "A dense method plans nothing: its attention is all of its time. Oracle and random blocks are bounds, not "
        "competitors; the oracle's plan is the whole attention with its pooled map.",
        f"q, k and v: {said}.",
        "The paper has no such table; its Figures 5 and 6 draw parts of it.",
    ]
