"""Table beyond the paper: the time that every method of the timing sweep takes to plan, to attend, and for both.

A method that refused or failed keeps its line, with the reason. Figures 5 and 6 draw the same rows without random
blocks and the oracles, whose plans compute the whole attention.
"""

from __future__ import annotations

import pandas as pd

from seerbench.artefacts import aggregates, colors, frames, labels, style, table_format
from seerbench.artefacts import chart as charts
from seerbench.rows.store import Run

STAGES = ("plan", "attend", "total")
PLACE = ["method", "sparsity_requested", "context"]
TIMES, SPEEDUPS = "plan + attend; both in one call, ms", "speed-up over dense; over the fastest dense"
AGAINST = ("reference", "fastest")


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return the medians in ms of each method, cell and stage, and the speed-ups of the total over dense methods.

    A dense method is timed in many cells and plans nothing, so it has one line per context: its attention.
    """
    cells, samples = frames.timings(run, "methods")
    dense = cells.apply(aggregates.is_dense, axis=1)
    times = aggregates.latencies(cells[~dense], samples)
    parts = [aggregates.dense_latencies(cells, samples), times[times.stage.isin(STAGES) | times.stage.isna()]]
    for against in AGAINST:
        faster = aggregates.speedups(cells[cells.status == "measured"], samples, "total", against)
        parts.append(faster.assign(metric=_metric(against)))
    frame = frames.tidy(*parts).drop_duplicates([*PLACE, "metric", "stage"])
    frame = frame.merge(cells[[*PLACE, "gate"]].drop_duplicates(PLACE), on=PLACE, how="left")
    series = frame.method.isin(cells.method[dense]).map({True: "dense", False: None})
    frame = frame.assign(label=str(labels.label(run, cells, timed=True)), series=series)
    return frames.tidy(table_format.ordered(frame, "sparsity_requested", "context"))


def _metric(against: str) -> str:
    """Return the metric of a speed-up over the reference or over the fastest dense method."""
    return f"speedup over {against}"


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """Return two lines per method and sparsity, times and speed-ups, with one column per context."""
    lines = []
    for _, group in frame.groupby(PLACE, sort=False, dropna=False):
        first = group.iloc[0]
        times, faster = (group[(group.metric == "latency") == is_time] for is_time in (True, False))
        lines.append({**first, "quantity": TIMES, "text": _times(times, first)})
        if len(faster):
            lines.append({**first, "quantity": SPEEDUPS, "text": _speedups(faster)})
    cells = pd.DataFrame(lines)
    cells["method_name"] = cells.apply(table_format.method_name, axis=1)
    cells["requested"] = cells.apply(
        lambda entry: "" if entry.series == "dense" else table_format.requested(entry), axis=1
    )
    rows = {"method_name": "method", "requested": "requested sparsity", "quantity": "quantity"}
    return table_format.grid(cells, rows, "context", lambda entry: entry.text, style.size)


def _times(times: pd.DataFrame, first: pd.Series) -> str:
    """Return "1.51 + 28.4; 30.9 (0.90)": plan, attend, both in one call, and the realised sparsity.

    For a dense method it is the time of its attention.
    """
    ms = times.dropna(subset="stage").set_index("stage").value
    if set(STAGES) <= set(ms.index):
        text = f"{ms['plan']:.3g} + {ms['attend']:.3g}; {ms['total']:.3g}"
    else:
        text = "; ".join(f"{value:.3g}" for value in ms)
    return text + table_format.in_brackets(first.sparsity_realised)


def _speedups(faster: pd.DataFrame) -> str:
    """Return "14.0x; 7.9x cuDNN": the speed-ups over the reference and over the fastest dense method."""
    by_metric = faster.drop_duplicates("metric").set_index("metric")
    texts = []
    for against in AGAINST:
        metric = _metric(against)
        if metric in by_metric.index and pd.notna(by_metric.value[metric]):
            base = f" {colors.display(by_metric.base[metric])}" if against == "fastest" else ""
            texts.append(f"{by_metric.value[metric]:.3g}x{base}")
    return "; ".join(texts)


def chart(frame: pd.DataFrame) -> charts.Chart:
    """Return the speed-up of each method over the share of blocks that it skips, the longest context first."""
    faster = frame[frame.metric == _metric("reference")].sort_values("context", ascending=False, kind="stable")
    points = charts.points(faster, panel=faster.context.map(style.size))
    bases = ", ".join(colors.display(base) for base in faster.base.dropna().unique())
    how = f"Right skips more and up is faster. Planning is included. Dense is {bases}."
    return charts.Chart(charts.SKIPPED, charts.SPEED_UP, how, points)


def remarks(frame: pd.DataFrame) -> list[str]:
    """Return how to read the cells, and what the inputs were."""
    bases = ", ".join(
        colors.display(base) for base in frame[frame.metric == _metric("reference")].base.dropna().unique()
    )
    inputs = frame[frame.model.notna()].groupby("model").context.unique()
    inputs_text = "; ".join(f"{name} ({', '.join(map(style.size, sorted(at)))})" for name, at in inputs.items())
    return [
        "Times: medians in ms of planning, of attention alone, and of both in one call, which is not their sum "
        "(realised sparsity). Speed-ups: medians over rounds of dense time / method time, planning included; "
        f"dense is {bases}.",
        "A dense method plans nothing: its attention is all of its time. The oracles and random blocks do "
        "not compete: an oracle's plan computes the whole attention with its pooled map.",
        f"Inputs q, k and v: {inputs_text}.",
        *aggregates.random_input_remarks(frame),
        "The paper has no such table; its Figures 5 and 6 draw parts of it.",
    ]
