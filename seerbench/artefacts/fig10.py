"""Figure 10: which pooling of Q and K makes the best gate, of all 49 combinations."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from seerbench.artefacts import aggregates, colors, frames, style
from seerbench.rows.store import Run

POOLS = ("max", "min", "avg", "maxmin", "maxavg", "minavg", "maxminavg")
PAPER_BEST = "Qavg_Kmaxmin"  # v1's choice
BEST = 15  # the paper draws as many


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Delta NLL of every combination and sparsity; `place` is its rank at the highest sparsity."""
    rows = frames.experiment(run, "perplexity", "pooling", "perplexity")
    cells = aggregates.perplexities(rows, aggregates.dense_rows(run, rows))
    cells = cells[cells.method == "seer"]
    if not cells.delta.notna().any():
        raise frames.unmeasured(
            run, "perplexity", "gates beside dense in the experiment 'pooling'", "perplexity PRESET pooling"
        )
    cells = cells.assign(series=cells.gate.str.split(":").str[-1])
    highest = cells[cells.sparsity_requested == cells.sparsity_requested.max()]
    places = highest.set_index("series").delta.rank(method="first")
    cells = cells.drop(columns=["low", "high"]).rename(
        columns={"delta": "y", "delta_low": "low", "delta_high": "high", "value": "perplexity"}
    )
    x = cells.sparsity_realised.fillna(cells.sparsity_requested)
    cells = cells.assign(metric="delta NLL", unit="nats a token", x=x, place=cells.series.map(places))
    cells = cells.assign(label=frames.label(run, rows)).sort_values(["place", "series", "x"])
    return frames.tidy(cells, extra=["place", "perplexity"])


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Lines of the best combinations beside all 49 at the highest sparsity."""
    fig, (left, right) = style.figure(1, 2, 3.9, width_ratios=[4, 5])
    drawn = [name for name in frame.series.unique() if frame.place[frame.series == name].min() <= BEST]
    drawn += [PAPER_BEST] if PAPER_BEST not in drawn and (frame.series == PAPER_BEST).any() else []
    tints = colors.shades("#888888", len(drawn))
    for name, tint in zip(drawn, tints):
        points = frame[frame.series == name].sort_values("x")
        mine = name == PAPER_BEST
        label = f"{points.place.iloc[0]:.0f}. {name}" + ("\n(the paper's best)" if mine else "")
        color, width = (colors.colour("seer"), 2.0) if mine else (tint, 0.9)
        left.plot(points.x, points.y, color=color, linewidth=width, zorder=3 if mine else 2, label=label)
        if mine:
            left.fill_between(points.x, points.low, points.high, color=color, alpha=style.BAND, linewidth=0)
    left.set(xlabel="blocks skipped (realised)", ylabel="delta NLL (nats a token)", title=f"(a) the best {BEST}")
    left.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    return _map(fig, right, frame)


def _map(fig: Figure, ax, frame: pd.DataFrame) -> Figure:
    highest = frame.sparsity_requested.max()
    cells = frame[frame.sparsity_requested == highest].set_index("series").y
    square = np.array([[cells.get(f"Q{q}_K{k}", np.nan) for k in POOLS] for q in POOLS], dtype=float)
    drawn = ax.imshow(square, cmap="viridis_r")
    middle = np.nanmean([np.nanmin(square), np.nanmax(square)])
    for row, column in np.ndindex(square.shape):
        if not np.isnan(square[row, column]):
            paper = f"Q{POOLS[row]}_K{POOLS[column]}" == PAPER_BEST
            shown = f"{square[row, column]:.3f}"
            color = "white" if square[row, column] > middle else "black"
            weight = "bold" if paper else "normal"
            ax.text(column, row, shown, ha="center", va="center", fontsize=5, color=color, weight=weight)
    ax.grid(False)
    ax.set_xticks(range(len(POOLS)), POOLS, rotation=45, ha="right", fontsize=6)
    ax.set_yticks(range(len(POOLS)), POOLS, fontsize=6)
    ax.set(xlabel="pooling of K", ylabel="pooling of Q", title=f"(b) all 49 at {highest:.0%} skipped")
    fig.colorbar(drawn, ax=ax, label="delta NLL (nats a token)", shrink=0.7)
    context = style.size(frame.context.max())
    style.caption(
        fig,
        frame,
        f"At {context}; lower is better; places are those at {highest:.0%}. Band: 95% over documents, paired with "
        "dense. Paper: Figure 10 prints no values, only that Q avg with K max and min is best (bold).",
    )
    return fig
