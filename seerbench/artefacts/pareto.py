"""Figure beyond the paper: the loss of each method against its speed-up, on the same model and text.

The loss over dense is that of the experiment `contexts`. The speed-up is that of the sweep `methods` on q, k and v
that were captured in the same model, so the masks that cause the loss are the masks that are timed. The loss of a
point is that at the realised sparsity of its timed cell, interpolated along the losses of its method
(rows/equal_sparsity.py). Points further right (faster) and lower (less loss) are better.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from seerbench.artefacts import aggregates, colors, frames, gate_sets, labels, style
from seerbench.artefacts import chart as charts
from seerbench.errors import MissingRows
from seerbench.rows.gate_ref import PAPER_GATE
from seerbench.rows.schema import CAPTURED
from seerbench.rows.store import Run

NO_LOSS = "no loss was measured at its realised sparsity"


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one line per context, method, sparsity and stage: speed-up (x) and loss over dense (y).

    The contexts are those that have both. SeerAttention is shown with the paper's gate, since the sweep times one
    gate per block size. Raises MissingRows if no context has both.
    """
    every = rows = frames.experiment(run, "perplexity", "contexts", "perplexity")
    cells, samples = frames.timings(run, "methods")
    # Captured in a model of these losses, at a context that the model was trained for.
    of_model = (cells.inputs_kind == CAPTURED) & cells.inputs_model.isin(rows.model.unique())
    of_model &= cells.inputs_trained_context.isna()
    both = sorted(set(rows.context) & set(cells[of_model].context))
    if not both:
        what = "timings of the sweep 'methods' on the model and at a context of the experiment 'contexts'"
        raise MissingRows("cells", what, "latency PRESET methods CONTEXT", run.folder)
    cells = cells[of_model & cells.context.isin(both)]
    dense = aggregates.dense_rows(run, rows)
    rows = rows[rows.sparsity_requested.notna()]
    gated = rows.gate.map(gate_sets.set_of)
    rows = rows[gated.isna() | (gated == PAPER_GATE)]
    lines = []
    for stage in style.STAGE_LINES:
        faster = aggregates.speedups(cells, samples, stage)
        faster = faster[faster.sparsity_requested.notna()]
        faster = faster.rename(columns={"value": "x", "low": "x_low", "high": "x_high"})
        for (context, method), settings in faster.groupby(["context", "method"], sort=False):
            losses = rows[(rows.context == context) & (rows.method == method)]
            if len(losses):
                records = settings.to_dict("records")
                lines += [line | {"panel": stage} | _loss(losses, dense, line) for line in records]
    frame = pd.DataFrame(lines).assign(label=str(labels.label(run, every, cells, timed=True)))
    frame["rank"] = frame.method.map(colors.rank)
    frame = frame.sort_values(
        ["panel", "context", "rank", "method", "sparsity_requested"], ascending=[False, True, True, True, True]
    )
    return frames.tidy(frame, extra=("x_low", "x_high"))


def _loss(rows: pd.DataFrame, dense: pd.DataFrame, line: dict[Hashable, Any]) -> dict[str, Any]:
    """Return y, low and high of a timed line: the loss at its realised sparsity, from the rows of its method."""
    place = {"model": rows.model.iloc[0], "corpus": rows.corpus.iloc[0]}
    place |= dict.fromkeys(("y", "low", "high"), math.nan)
    if line["status"] != "measured":
        return place
    dense = dense[(dense.context == line["context"]) & (dense.corpus == place["corpus"])]
    loss = aggregates.loss_at(rows, dense, line["sparsity_realised"])
    if loss is None:
        return place | {"status": "missing", "reason": NO_LOSS}
    return place | dict(zip(("y", "low", "high"), loss)) | {"gate": rows.gate.iloc[0]}


def chart(frame: pd.DataFrame) -> charts.Chart:
    """Return the points of the figure, the longest context first."""
    frame = frame.sort_values("context", ascending=False, kind="stable")
    meanings = {stage: meaning for stage, (_, meaning) in style.STAGE_LINES.items()}
    panels = frame.context.map(style.size) + ", " + frame.panel.map(meanings)
    skipped = [f"{share:.0%} of the blocks skipped" for share in frame.sparsity_realised]
    points = charts.points(frame, panel=panels, note=skipped)
    how = "Right is faster and down is a smaller loss."
    return charts.Chart(charts.SPEED_UP, charts.LOSS, how, points)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one row of panels per context: with the time of block selection, and the attention alone."""
    contexts = sorted(frame.context.unique())
    fig, axes = style.figure(
        len(contexts), len(style.STAGE_LINES), 1.2 + 2.5 * len(contexts), sharex=True, sharey=True
    )
    known = frame[frame.x.notna() & frame.y.notna()]
    for place, (context, stage) in enumerate(itertools.product(contexts, style.STAGE_LINES)):
        ax, ends = axes[place], {}
        points = known[(known.panel == stage) & (known.context == context)]
        for method, line in points.groupby("method", sort=False):
            _line(ax, method, line.sort_values("sparsity_requested"))
            shares = sorted({f"{share:.0%}" for share in line.sparsity_realised})
            last = line.loc[line.sparsity_requested.idxmax()]
            ends[f"{colors.display(method)}, {' to '.join(dict.fromkeys((shares[0], shares[-1])))}"] = last
        _axes(ax, known)
        ax.set_title(f"{style.size(context)}, {style.STAGE_LINES[stage][1]}")
        style.names_at_the_right(ax, {name: (end.x, end.y, colors.color(end.method)) for name, end in ends.items()})
    for ax in axes[:: len(style.STAGE_LINES)]:
        ax.set_ylabel("loss over dense (nats per token)")
    bases = ", ".join(colors.display(base) for base in frame.base.dropna().unique())
    style.caption(
        fig,
        frame,
        f"{', '.join(frame.model.unique())}, {', '.join(frame.corpus.unique())}. Right is faster and down is a "
        "smaller loss. A name is at the sparsest point of its line, with the realised sparsity of the line's ends; "
        f"larger marks skip more. Both axes are logarithmic; the loss is linear below {style.LINEAR_BELOW}.",
        f"Speed-up over {bases} [95% interval over rounds]. Loss over dense at the sparsity of the timed layer, "
        "interpolated between the measured ones [95% paired interval over documents]. The paper has no such "
        "figure.",
    )
    return fig


def _line(ax: Axes, method: str, points: pd.DataFrame) -> None:
    """Draw the line of one method with both intervals, and marks that grow with the share of skipped blocks."""
    color = colors.color(method)
    ax.errorbar(
        points.x,
        points.y,
        xerr=[points.x - points.x_low, points.x_high - points.x],
        yerr=[points.y - points.low, points.high - points.y],
        color=color,
        elinewidth=0.6,
        linewidth=0.9,
    )
    sizes = (2 + 4 * points.sparsity_realised) ** 2
    ax.scatter(points.x, points.y, s=sizes, color=color, marker=colors.marker(method), linewidths=0, zorder=3)


def _axes(ax: Axes, points: pd.DataFrame) -> None:
    """Give a panel its logarithmic axes: speed-ups in powers of two, losses linear around zero."""
    ax.axvline(1, color="black", linewidth=0.8)
    ax.axhline(0, color="black", linewidth=0.4)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("speed-up over dense")
    style.loss_axis(ax, [points.low.min(), points.high.max()])  # those of all panels, which share the axis
