"""Figure 5: where SeerAttention's time goes (gate, top-k, sparse attention) at the longest context.

Panel (c), beyond the paper: planning and attention of the other methods, each at the highest sparsity of its own.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from seerbench.artefacts import aggregates, colors, frames, style
from seerbench.rows.store import Run

CUT = 3.0  # a bar of (c) that is so many times the next longest is cut, and says how long it is
# stage -> (name, colour), bottom to top. `plan` stands in where score and select were not timed apart.
STAGES = {
    "score": ("AttnGate", colors.colour("seer")),
    "select": ("top-k", "#F0E442"),
    "plan": ("AttnGate and top-k", colors.colour("seer")),
    "attend": ("block-sparse attention", colors.colour("block_sparse")),
}
BREAKDOWN, SPEED, OTHERS = "a", "b", "c"


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Medians of the stages (panel a) and the speed-up of their total (panel b), sparsity by sparsity."""
    cells, samples = frames.timed(run, "methods")
    if not (cells.method == "seer").any():
        raise frames.unmeasured(
            run, "cells", "cells of SeerAttention in the sweep 'methods'", "latency PRESET methods CONTEXT"
        )
    cells = cells[cells.context == aggregates.longest(cells[cells.method == "seer"])]
    times = aggregates.latencies(cells[cells.method == "seer"], samples)
    split = {"score", "select"} <= set(times.stage)
    times = times[times.stage != ("plan" if split else "score")].assign(panel=BREAKDOWN)
    dense = aggregates.dense_latencies(cells, samples).assign(panel=BREAKDOWN)
    faster = aggregates.speedups(cells, samples, "total")
    faster = faster[faster.method == "seer"].assign(panel=SPEED)
    printed = frames.printed(paper, "fig5").assign(panel=SPEED)
    frame = frames.tidy(printed, dense, times, faster, _others(cells, samples).assign(panel=OTHERS))
    frame.loc[frame.source == "measured", "label"] = frames.label(run, cells, timed=True)
    frame["x"] = frame.sparsity_realised.fillna(frame.sparsity_requested)
    frame["rank"] = frame.method.map(colors.rank)
    frame = frame.rename(columns={"value": "y"})
    return frames.tidy(frame.sort_values(["panel", "rank", "source", "x"], kind="stable"))


def _others(cells: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Stages of every sparse method but SeerAttention, one cell each: the one of the highest requested sparsity."""
    rest = cells[~cells.apply(aggregates.is_dense, axis=1) & ~cells.method.isin(["seer", *aggregates.BOUNDS])]
    rest = rest[rest.status == "measured"]
    last = rest.sort_values("sparsity_requested", na_position="first").drop_duplicates("method", keep="last")
    times = aggregates.latencies(last, samples)
    return times[times.stage.isin(["plan", "attend", "total"])]


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Stacked bars beside speed-ups, the other methods' bars below."""
    others = frame[(frame.panel == OTHERS) & frame.y.notna()]
    count = others.method.nunique()
    if count:
        fig = Figure(figsize=(style.WIDTH, 4.2 + 0.2 * count), layout="constrained")
        # Figures of their own, so that the long names below take no width from the panels above.
        above, below = fig.subfigures(2, 1, height_ratios=[3, 0.8 + 0.2 * count])
        left, right = above.subplots(1, 2, width_ratios=[3, 2])
        _draw_others(below.subplots(), others)
    else:
        fig, (left, right) = style.figure(1, 2, 3.2, width_ratios=[3, 2])
    measured = frame[frame.source == "measured"]
    bars = measured[(measured.panel == BREAKDOWN) & measured.y.notna()]
    names = []
    for method, bar in bars[bars.method != "seer"].groupby("method", sort=False):
        left.bar(len(names), bar.y, color=colors.colour(method), width=0.7)
        names.append(colors.display(method))
    named: set[str] = set()
    for sparsity, bar in bars[bars.method == "seer"].groupby("x"):
        height = 0.0
        for stage, (name, color) in STAGES.items():
            for part in bar[bar.stage == stage].itertuples():
                label = None if name in named else name
                left.bar(len(names), part.y, bottom=height, color=color, width=0.7, label=label)
                height += part.y
                named.add(name)
        for whole in bar[bar.stage == "total"].itertuples():
            spread = [[whole.y - whole.low], [whole.high - whole.y]]
            label = None if "total" in named else "all of it, timed as one (quartiles)"
            left.errorbar(len(names), whole.y, spread, fmt="_", color="black", markersize=9, label=label)
            named.add("total")
        names.append(f"{sparsity:.0%}")
    left.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    context = style.size(measured.context.max())
    left.set(ylabel="time (ms)", xlabel="blocks skipped (realised)", title=f"(a) attention of one layer, {context}")
    left.grid(False, axis="x")
    if names:
        left.set_ylim(top=1.5 * left.get_ylim()[1])  # room for the legend
        left.legend(loc="upper right")
    for (source, base), points in frame[frame.panel == SPEED].groupby(["source", "base"], dropna=False):
        who = "paper" if source == "paper" else "measured"
        over = (
            "FlashAttention-2" if source == "paper" else colors.display(base if isinstance(base, str) else "dense")
        )
        label = f"{who}, {style.size(points.context.max())}, over {over}"
        style.line(right, points, label, "seer")
    right.axhline(1, color="black", linewidth=0.8)
    right.set(xlabel="blocks skipped", ylabel="speed-up (x)", title="(b) gate and top-k included")
    right.set_ylim(0, 1.3 * right.get_ylim()[1])  # room for the legend
    right.legend(loc="upper left")
    style.caption(fig, frame, "Bands: 95% over rounds. Paper: Figure 5 prints no values but 5.47x.")
    return fig


def _draw_others(ax: Axes, others: pd.DataFrame) -> None:
    """A bar a method: planning, then attention; the mark is both timed together."""
    names, ends = [], []
    for method, bar in sorted(others.groupby("method"), key=lambda pair: colors.rank(pair[0])):
        values = bar.set_index("stage").y
        ends.append(values["plan"] + values["attend"])
        ax.barh(len(names), values["plan"], color="#F0E442", label=None if names else "plan")
        ax.barh(len(names), values["attend"], left=values["plan"], color=colors.colour("block_sparse"),
                label=None if names else "attention")  # fmt: skip
        ax.plot(values["total"], len(names), "|", color="black", markersize=8, label=None if names else "as one")
        names.append(f"{colors.display(method)}, {bar.x.iloc[0]:.0%} skipped")
    *_, second, first = 0.0, *sorted(ends)
    if first > CUT * second > 0:
        ax.set_xlim(0, 1.25 * second)
        place = ends.index(first)
        ax.annotate(f"to {first:.0f} ms", (1.24 * second, place), ha="right", va="center", fontsize=7)
    ax.set_yticks(range(len(names)), names)
    ax.grid(False, axis="y")
    ax.set(xlabel="time (ms)", title="(c) the other methods")
    ax.set_ylim(len(names) + 0.6, -0.6)  # room for the legend below the last bar
    ax.legend(loc="lower right", ncols=3)
