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
AGAINST = ("reference", "fastest")
MEMORY = "peak_memory"  # the metric of peak memory
# The columns of the table. A cell without a time has its reason where the time of both would be.
SKIPPED, BOTH = "skipped", "both in one call, ms"
OVER_DENSE, OVER_FASTEST = "speed-up over dense", "speed-up over the fastest dense"
STAGE_COLUMNS = {"plan": "plan, ms", "attend": "attention, ms", "total": BOTH}
PEAK = "peak, MiB"
TABLE = [SKIPPED, *STAGE_COLUMNS.values(), OVER_DENSE, OVER_FASTEST, PEAK]


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return the medians in ms of each method, cell and stage, the speed-ups of the total, and the peak memory.

    Speed-ups are over dense methods. Memory is that of one call beyond its inputs, planning included. A dense
    method is timed in many cells and plans nothing, so it has one line per context: its attention.
    """
    cells, samples = frames.timings(run, "methods")
    dense = cells.apply(aggregates.is_dense, axis=1)
    times = aggregates.latencies(cells[~dense], samples)
    parts = [aggregates.dense_latencies(cells, samples), times[times.stage.isin(STAGES) | times.stage.isna()]]
    for against in AGAINST:
        faster = aggregates.speedups(cells[cells.status == "measured"], samples, "total", against)
        parts.append(faster.assign(metric=_metric(against)))
    peaks = cells[(cells.status == "measured") & cells.peak_mib.notna()]
    memory = aggregates.cell_lines(peaks).assign(value=peaks.peak_mib.to_numpy(), metric=MEMORY, unit="MiB")
    frame = frames.tidy(*parts, memory).drop_duplicates([*PLACE, "metric", "stage"])
    frame = frame.merge(cells[[*PLACE, "gate"]].drop_duplicates(PLACE), on=PLACE, how="left")
    series = frame.method.isin(cells.method[dense]).map({True: "dense", False: None})
    frame = frame.assign(label=str(labels.label(run, cells, timed=True)), series=series)
    return frames.tidy(table_format.ordered(frame, "sparsity_requested", "context"))


def _metric(against: str) -> str:
    """Return the metric of a speed-up over the reference or over the fastest dense method."""
    return f"speedup over {against}"


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per method, sparsity and context, with a column for each time and speed-up."""
    cells = frame.assign(column=[_column(entry) for _, entry in frame.iterrows()])
    skipped = frame[frame.sparsity_realised.notna() & (frame.status == "measured")].drop_duplicates(PLACE)
    cells = pd.concat([cells, skipped.assign(column=SKIPPED, metric=SKIPPED)]).sort_index(kind="stable")
    cells = cells.assign(
        method_name=cells.apply(table_format.method_name, axis=1),
        requested=cells.apply(_requested, axis=1),
        length=cells.context.map(style.size),
    )
    rows = {"method_name": "method", "requested": "requested sparsity", "length": "context"}
    grid = table_format.grid(cells, rows, "column", _cell)
    return grid[[*rows.values(), *(name for name in TABLE if name in grid)]]


def _column(entry: pd.Series) -> str:
    """Return the column of a line of the frame."""
    if entry.metric == "latency":
        return STAGE_COLUMNS.get(entry.stage, BOTH)
    if entry.metric == MEMORY:
        return PEAK
    return OVER_DENSE if entry.metric == _metric("reference") else OVER_FASTEST


def _requested(entry: pd.Series) -> str:
    return "" if entry.series == "dense" else table_format.requested(entry)


def _cell(entry: pd.Series) -> str:
    """Return a time as "1.51", a share as "90%", a speed-up as "7.9x [7.8, 8.0]" or "7.9x cuDNN [7.8, 8.0]"."""
    if entry.column == SKIPPED:
        return f"{entry.sparsity_realised:.0%}"
    if entry.metric in ("latency", MEMORY):
        return f"{entry.value:.3g}"
    if pd.isna(entry.value):
        return table_format.ABSENT
    base = f" {colors.display(entry.base)}" if entry.column == OVER_FASTEST else ""
    return f"{entry.value:.3g}x{base} [{entry.low:.3g}, {entry.high:.3g}]"


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
        "Times: medians in ms of planning, of attention alone, and of both in one call, which is not their sum. "
        "Skipped: the realised sparsity. Speed-ups: medians over rounds of dense time / method time [95% "
        f"interval], planning included; dense is {bases}.",
        "A dense method plans nothing: its attention is all of its time. The oracles and random blocks do "
        "not compete: an oracle's plan computes the whole attention with its pooled map.",
        "Peak: memory of one call beyond its inputs, planning included.",
        f"Inputs q, k and v: {inputs_text}.",
        *aggregates.random_input_remarks(frame),
        "The paper has no such table; its Figures 5 and 6 draw parts of it.",
    ]
