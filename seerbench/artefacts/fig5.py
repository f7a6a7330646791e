"""Figure 5: the parts of SeerAttention's time (gate, top-k, sparse attention) at the longest context.

Panel (c) is beyond the paper: planning and attention of the other methods, each at the highest sparsity that was
timed.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from seerbench.artefacts import aggregates, colors, frames, labels, paper_numbers, style
from seerbench.errors import MissingRows
from seerbench.rows.store import Run

# A bar of (c) that is more than this many times as long as the next longest is cut, and its time is written.
CUT = 3.0
# stage -> (name, color), from bottom to top. `plan` is drawn where score and select were not timed apart.
STAGES = {
    "score": ("AttnGate", colors.color("seer")),
    "select": ("top-k", "#F0E442"),
    "plan": ("AttnGate and top-k", colors.color("seer")),
    "attend": ("block-sparse attention", colors.color("block_sparse")),
}
BREAKDOWN, SPEED, OTHERS = "a", "b", "c"


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return the medians of the stages (a), the speed-up of their total (b) and the other methods (c)."""
    cells, samples = frames.timings(run, "methods")
    if not (cells.method == "seer").any():
        what = "cells of SeerAttention in the sweep 'methods'"
        raise MissingRows("cells", what, "latency PRESET methods CONTEXT", run.folder)
    label = str(labels.label(run, cells, timed=True))
    cells = cells[cells.context == aggregates.longest(cells[cells.method == "seer"])]
    times = aggregates.latencies(cells[cells.method == "seer"], samples)
    split = {"score", "select"} <= set(times.stage)
    times = times[times.stage != ("plan" if split else "score")].assign(panel=BREAKDOWN)
    dense = aggregates.dense_latencies(cells, samples).assign(panel=BREAKDOWN)
    faster = aggregates.speedups(cells, samples, "total")
    faster = faster[faster.method == "seer"].assign(panel=SPEED)
    printed = paper_numbers.printed(paper, "fig5").assign(panel=SPEED)
    frame = frames.tidy(printed, dense, times, faster, _others(cells, samples).assign(panel=OTHERS))
    frame.loc[frame.source == "measured", "label"] = label
    frame["x"] = frame.sparsity_realised.fillna(frame.sparsity_requested)
    frame["rank"] = frame.method.map(colors.rank)
    frame = frame.rename(columns={"value": "y"})
    return frames.tidy(frame.sort_values(["panel", "rank", "source", "x"], kind="stable"))


def _others(cells: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Return the stages of every other sparse method in its cell of the highest requested sparsity."""
    rest = cells[~cells.apply(aggregates.is_dense, axis=1) & ~aggregates.is_control(cells.method)]
    rest = rest[rest.method != "seer"]
    rest = rest[rest.status == "measured"]
    last = rest.sort_values("sparsity_requested", na_position="first").drop_duplicates("method", keep="last")
    times = aggregates.latencies(last, samples)
    return times[times.stage.isin(["plan", "attend", "total"])]


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw stacked bars beside speed-ups, with the bars of the other methods below."""
    others = frame[(frame.panel == OTHERS) & frame.y.notna()]
    count = others.method.nunique()
    if count:
        fig = Figure(figsize=(style.WIDTH, 4.2 + 0.2 * count), layout="constrained")
        # Separate sub-figures, so that the long names below take no width from the panels above.
        above, below = fig.subfigures(2, 1, height_ratios=[3, 0.8 + 0.2 * count])
        left, right = above.subplots(1, 2, width_ratios=[3, 2])
        _draw_others(below.subplots(), others)
    else:
        fig, (left, right) = style.figure(1, 2, 3.2, width_ratios=[3, 2])
    _draw_breakdown(left, frame)
    _draw_speed(right, frame[frame.panel == SPEED])
    notes = [
        "(a): SeerAttention by the share of blocks that it skips; above a bar, the share of its time for choosing."
    ]
    notes += ["Bands: 95% intervals over rounds. Paper: Figure 5 prints no value but 5.47x."]
    style.caption(fig, frame, *notes, *aggregates.random_input_remarks(others))
    return fig


def _draw_breakdown(ax: Axes, frame: pd.DataFrame) -> None:
    """Draw one bar per dense method, then one stacked bar per sparsity of SeerAttention."""
    measured = frame[frame.source == "measured"]
    bars = measured[(measured.panel == BREAKDOWN) & measured.y.notna()]
    ticks: list[str] = []
    for method, bar in bars[bars.method != "seer"].groupby("method", sort=False):
        ax.bar(len(ticks), bar.y, color=colors.color(method), width=0.7)
        ticks.append(colors.display(method))
    in_legend: set[str] = set()
    for sparsity, bar in bars[bars.method == "seer"].groupby("x"):
        height = 0.0
        for stage, (name, color) in STAGES.items():
            for part in bar[bar.stage == stage].itertuples():
                label = None if name in in_legend else name
                ax.bar(len(ticks), part.y, bottom=height, color=color, width=0.7, label=label)
                height += part.y
                in_legend.add(name)
        for total in bar[bar.stage == "total"].itertuples():
            quartiles = [[total.y - total.low], [total.high - total.y]]
            label = None if "total" in in_legend else "all stages in one timing (quartiles)"
            ax.errorbar(len(ticks), total.y, quartiles, fmt="_", color="black", markersize=9, label=label)
            in_legend.add("total")
            choosing = bar[bar.stage.isin(["score", "select", "plan"])].y.sum() / total.y
            ax.annotate(f"{choosing:.1%}", (len(ticks), total.high), ha="center", va="bottom", fontsize=6)
        ticks.append(f"{colors.display('seer')}, {sparsity:.0%}")
    ax.set_xticks(range(len(ticks)), ticks, rotation=30, ha="right", rotation_mode="anchor")
    context = style.size(measured.context.max())
    ax.set(ylabel="time (ms)", title=f"(a) attention of one layer, {context}")
    ax.grid(False, axis="x")
    if ticks:
        ax.legend(loc="upper right", fontsize=6)


def _draw_speed(ax: Axes, speedups: pd.DataFrame) -> None:
    """Draw the paper's and the measured speed-up against sparsity."""
    for (source, base), points in speedups.groupby(["source", "base"], dropna=False):
        base_method = "fa2" if source == "paper" else base if isinstance(base, str) else "dense"
        context = style.size(points.context.max())
        style.line(ax, points, f"{source}, {context}, over {colors.display(base_method)}", "seer")
    ax.axhline(1, color="black", linewidth=0.8)
    ax.set(xlabel="blocks skipped", ylabel="speed-up (x)", title="(b) gate and top-k included")
    ax.set_ylim(0, 1.3 * ax.get_ylim()[1])  # leaves room for the legend
    ax.legend(loc="upper left")


def _draw_others(ax: Axes, others: pd.DataFrame) -> None:
    """Draw one bar per method: planning, then attention. The mark is the time of both in one timing."""
    ticks: list[str] = []
    ends: list[float] = []
    for method, bar in sorted(others.groupby("method"), key=lambda pair: colors.rank(pair[0])):
        times = bar.set_index("stage").y
        ends.append(times["plan"] + times["attend"])
        first = not ticks
        place = len(ticks)
        ax.barh(place, times["plan"], color="#F0E442", label="plan" if first else None)
        attend = colors.color("block_sparse")
        ax.barh(place, times["attend"], left=times["plan"], color=attend, label="attention" if first else None)
        label = "both in one timing" if first else None
        ax.plot(times["total"], place, "|", color="black", markersize=8, label=label)
        ticks.append(f"{colors.display(method)}, {bar.x.iloc[0]:.0%} skipped")
    *_, second, longest = 0.0, *sorted(ends)
    if longest > CUT * second > 0:
        ax.set_xlim(0, 1.25 * second)
        place = ends.index(longest)
        ax.annotate(f"to {longest:.0f} ms", (1.24 * second, place), ha="right", va="center", fontsize=7)
    ax.set_yticks(range(len(ticks)), ticks)
    ax.grid(False, axis="y")
    ax.set(xlabel="time (ms)", title="(c) the other methods")
    ax.set_ylim(len(ticks) + 0.6, -0.6)  # leaves room for the legend below the last bar
    ax.legend(loc="lower right", ncols=3)
