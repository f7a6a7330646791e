"""Figure 5: where SeerAttention's time goes (gate, top-k, sparse attention) at the longest context."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from seerbench.artefacts import sources, style, summaries
from seerbench.results import Run

# stage -> (name, colour), bottom to top. `plan` stands in where score and select were not timed apart.
STAGES = {
    "score": ("AttnGate", style.colour("seer")),
    "select": ("top-k", "#F0E442"),
    "plan": ("AttnGate and top-k", style.colour("seer")),
    "attend": ("block-sparse attention", style.colour("block_sparse")),
}
BREAKDOWN, SPEED = "a", "b"


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Medians of the stages (panel a) and the speed-up of their total (panel b), sparsity by sparsity."""
    cells, samples = sources.timed(run, "methods")
    if not (cells.method == "seer").any():
        raise sources.unmeasured(
            run, "cells of SeerAttention in the sweep 'methods'", "latency PRESET methods CONTEXT"
        )
    cells = cells[cells.context == summaries.longest(cells[cells.method == "seer"])]
    times = summaries.latencies(cells[cells.method == "seer"], samples)
    split = {"score", "select"} <= set(times.stage)
    times = times[times.stage != ("plan" if split else "score")].assign(panel=BREAKDOWN)
    dense = summaries.dense_latencies(cells, samples).assign(panel=BREAKDOWN)
    faster = summaries.speedups(cells, samples, "total")
    faster = faster[faster.method == "seer"].assign(panel=SPEED)
    printed = sources.printed(paper, "fig5").assign(panel=SPEED)
    frame = sources.tidy(printed, dense, times, faster)
    frame.loc[frame.source == "measured", "label"] = sources.label(run, cells, timed=True)
    frame["x"] = frame.sparsity_realised.fillna(frame.sparsity_requested)
    frame["rank"] = frame.method.map(style.rank)
    frame = frame.rename(columns={"value": "y"})
    return sources.tidy(frame.sort_values(["panel", "rank", "source", "x"], kind="stable"))


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Stacked bars beside speed-ups."""
    fig, (left, right) = style.figure(1, 2, 3.2, width_ratios=[3, 2])
    measured = frame[frame.source == "measured"]
    bars = measured[(measured.panel == BREAKDOWN) & measured.y.notna()]
    names = []
    for method, bar in bars[bars.method != "seer"].groupby("method", sort=False):
        left.bar(len(names), bar.y, color=style.colour(method), width=0.7)
        names.append(style.display(method))
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
    left.set_xticks(range(len(names)), names)
    context = style.size(measured.context.max())
    left.set(ylabel="time (ms)", xlabel="blocks skipped (realised)", title=f"(a) attention of one layer, {context}")
    left.grid(False, axis="x")
    if names:
        left.set_ylim(top=1.5 * left.get_ylim()[1])  # room for the legend
        left.legend(loc="upper right")
    for (source, base), points in frame[frame.panel == SPEED].groupby(["source", "base"], dropna=False):
        who = "paper" if source == "paper" else "measured"
        over = "FlashAttention-2" if source == "paper" else style.display(base)
        label = f"{who}, {style.size(points.context.max())}, over {over}"
        style.line(right, points, label, "seer")
    right.axhline(1, color="black", linewidth=0.8)
    right.set(xlabel="blocks skipped", ylabel="speed-up (x)", title="(b) gate and top-k included")
    right.set_ylim(0, 1.3 * right.get_ylim()[1])  # room for the legend
    right.legend(loc="upper left")
    style.caption(fig, frame, "Bands: 95% over rounds. Paper: Figure 5 prints no values but 5.47x.")
    return fig
