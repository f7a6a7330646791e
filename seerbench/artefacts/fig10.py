"""Figure 10: the loss of gates with each of the 49 combinations of poolings of Q and K."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from seerbench.artefacts import aggregates, colors, frames, gate_sets, labels, style
from seerbench.artefacts.paper_numbers import BEST_POOLING
from seerbench.errors import MissingRows
from seerbench.rows.store import Run

POOLS = ("max", "min", "avg", "maxmin", "maxavg", "minavg", "maxminavg")
BEST = 15  # The paper draws this many combinations.


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return the loss over dense of every combination and sparsity; `place` is its rank at the highest sparsity."""
    rows = frames.experiment(run, "perplexity", "pooling", "perplexity")
    cells = aggregates.perplexities(rows, aggregates.dense_rows(run, rows))
    cells = cells[cells.method == "seer"]
    if not cells.delta.notna().any():
        what = "gates beside dense in the experiment 'pooling'"
        raise MissingRows("perplexity", what, "perplexity PRESET pooling", run.folder)
    cells = cells.assign(series=cells.gate.map(gate_sets.set_of))
    highest = cells[cells.sparsity_requested == cells.sparsity_requested.max()]
    places = highest.set_index("series").delta.rank(method="first")
    cells = cells.drop(columns=["low", "high"]).rename(
        columns={"delta": "y", "delta_low": "low", "delta_high": "high", "value": "perplexity"}
    )
    x = cells.sparsity_realised.fillna(cells.sparsity_requested)
    cells = cells.assign(metric="loss", unit="nats per token", x=x, place=cells.series.map(places))
    cells = cells.assign(label=str(labels.label(run, rows))).sort_values(["place", "series", "x"])
    return frames.tidy(cells, extra=["place", "perplexity"])


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw the best combinations with their intervals beside a map of all 49, both at the highest sparsity."""
    fig, (left, right) = style.figure(1, 2, 3.9, width_ratios=[4, 5])
    highest = frame.sparsity_requested.max()
    _draw_best(left, frame[frame.sparsity_requested == highest])
    _draw_map(fig, right, frame[frame.sparsity_requested == highest])
    style.caption(
        fig,
        frame,
        f"At {style.size(frame.context.max())}; lower is better. Bars: 95% intervals over "
        f"{frame['count'].max():.0f} documents, paired with dense; where they overlap, the order means nothing.",
        "Paper: Figure 10 prints no values; it says that Q avg with K max and min (bold) is best. The CSV has the "
        "other sparsities.",
    )
    return fig


def _draw_best(ax: Axes, frame: pd.DataFrame) -> None:
    """Draw one mark with its interval for each of the best combinations, and for the paper's best."""
    shown = frame[(frame.place <= BEST) | (frame.series == BEST_POOLING)].sort_values("place")
    for place, point in enumerate(shown.itertuples()):
        color = colors.color("seer") if point.series == BEST_POOLING else "0.45"
        ax.errorbar(point.y, place, xerr=[[point.y - point.low], [point.high - point.y]], fmt="o", color=color)
    names = [f"{point.place:.0f}. {point.series}" for point in shown.itertuples()]
    ax.set_yticks(range(len(names)), names, fontsize=6)
    for text, name in zip(ax.get_yticklabels(), shown.series):
        text.set_fontweight("bold" if name == BEST_POOLING else "normal")
    ax.invert_yaxis()
    sparsity = frame.sparsity_requested.max()
    ax.set(xlabel="loss over dense (nats per token)", title=f"(a) the best {BEST} at {sparsity:.0%} skipped")


def _draw_map(fig: Figure, ax: Axes, frame: pd.DataFrame) -> None:
    """Draw the loss over dense of every combination at one sparsity."""
    cells = frame.set_index("series").y
    square = np.array([[cells.get(f"Q{q}_K{k}", np.nan) for k in POOLS] for q in POOLS], dtype=float)
    drawn = ax.imshow(square, cmap="viridis_r")
    middle = np.nanmean([np.nanmin(square), np.nanmax(square)])
    for row, column in np.ndindex(square.shape):
        if not np.isnan(square[row, column]):
            weight = "bold" if f"Q{POOLS[row]}_K{POOLS[column]}" == BEST_POOLING else "normal"
            color = "white" if square[row, column] > middle else "black"
            text = f"{square[row, column]:.3f}"
            ax.text(column, row, text, ha="center", va="center", fontsize=5, color=color, weight=weight)
    ax.grid(False)
    ax.set_xticks(range(len(POOLS)), POOLS, rotation=45, ha="right", fontsize=6)
    ax.set_yticks(range(len(POOLS)), POOLS, fontsize=6)
    sparsity = frame.sparsity_requested.max()
    ax.set(xlabel="pooling of K", ylabel="pooling of Q", title=f"(b) all 49 at {sparsity:.0%} skipped")
    fig.colorbar(drawn, ax=ax, label="loss over dense (nats per token)", shrink=0.7)
