"""Figure 4: perplexity against sparsity, with one line per context and one row of panels per model and gate.

The paper draws the perplexity. Beside it is the paired loss, since documents differ from each other far more than
sparsity changes any of them, and the intervals of the perplexities hide that change. A last row, which the paper
does not have, shows every method of the experiment `contexts` at its longest context.
"""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from seerbench.artefacts import aggregates, colors, frames, gate_sets, labels, style
from seerbench.errors import MissingRows
from seerbench.rows import requests
from seerbench.rows.gate_ref import UNTRAINED
from seerbench.rows.store import Run

METHODS = "every method"  # the panel with all methods at one context
EXPERIMENT, ON_MATHEMATICS = "contexts", "contexts-math"  # The paper's figure is on Proof-pile.


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return perplexity and loss of SeerAttention with each trained gate, of dense, and of all methods.

    The rows are those of the experiment on mathematics where a run has it.
    """
    every = requests.rows(run, "perplexity")
    name = ON_MATHEMATICS if (every.experiment == ON_MATHEMATICS).any() else EXPERIMENT
    rows = frames.experiments(run, "perplexity", name, "perplexity")
    # Model by model, since the loss is measured against dense attention in the same model.
    models = [group for _, group in rows.groupby("model", sort=False)]
    cells = pd.concat([aggregates.perplexities(group, aggregates.dense_rows(run, group)) for group in models])
    seer = cells[(cells.method == "seer") & ~gate_sets.is_set(cells.gate, UNTRAINED)]
    if seer.empty:
        what = f"perplexity rows of SeerAttention in the experiment {EXPERIMENT!r}"
        raise MissingRows("perplexity", what, f"perplexity PRESET {EXPERIMENT}", run.folder)
    parts = []
    for (model, gate), group in seer.groupby(["model", "gate"], dropna=False, sort=True):
        dense = cells[(cells.method == "dense") & (cells.model == model)]
        corpus = ", ".join(group.corpus.unique())
        panel = f"{model} on {corpus}, gate {gate}"
        parts.append(pd.concat([dense.assign(sparsity_realised=0.0), group]).assign(panel=panel))
    frame = pd.concat(parts).assign(label=str(labels.label(run, rows)))
    frame["series"] = frame.context.map(style.size)
    frame = pd.concat([frame, _methods(run)])
    frame["x"] = frame.sparsity_realised.fillna(frame.sparsity_requested)
    frame = frame.rename(columns={"value": "y"}).sort_values(["panel", "context", "series", "x"], kind="stable")
    return frames.tidy(frame)


def _methods(run: Run) -> pd.DataFrame:
    """Return every sparse method at the longest context, or nothing if the run has only SeerAttention."""
    rows = requests.rows(run, "perplexity")
    rows = rows[rows.experiment == EXPERIMENT]
    rows = rows[rows.context == rows.context.max()]
    cells = aggregates.perplexities(rows, aggregates.dense_rows(run, rows)) if len(rows) else pd.DataFrame()
    if cells.empty or set(cells.method) <= {"dense", "seer"}:
        return pd.DataFrame()
    cells = cells[(cells.method != "dense") & ~gate_sets.is_set(cells.gate, UNTRAINED)]
    names = [colors.display(method, gate) for method, gate in zip(cells.method, cells.gate)]
    return cells.assign(panel=METHODS, series=names, label=str(labels.label(run, rows)))


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw perplexity and loss over dense per model and gate, then both for every method at one context."""
    panels = sorted(frame.panel.unique(), key=lambda panel: panel == METHODS)
    fig, axes = style.figure(len(panels), 2, 0.6 + 2.5 * len(panels))
    contexts = sorted(frame.context.unique())
    tints = dict(zip(contexts, colors.shades(colors.color("seer"), len(contexts))))
    for place, panel in enumerate(panels):
        left, right = axes[2 * place], axes[2 * place + 1]
        lines = frame[frame.panel == panel]
        if panel == METHODS:
            _draw_methods(left, right, lines)
            handles, names = left.get_legend_handles_labels()
            # Up to 20 settings: inside the panel the legend would cover the lines.
            fig.legend(handles, names, title=METHODS, loc="outside upper center", ncols=3, fontsize=6)
            where = f"{panel} on {', '.join(lines.corpus.unique())}, {style.size(lines.context.iloc[0])}"
        else:
            for (context, series), points in lines.groupby(["context", "series"], sort=False):
                style.line(left, points, series, "seer", color=tints[context])
                style.line(right, style.losses(points), series, "seer", color=tints[context])
            left.legend(title="context", loc="upper left")
            where = panel
        left.set(title=where, xlabel="blocks skipped (realised)", ylabel="perplexity")
        right.set(title="against dense, paired", xlabel="blocks skipped (realised)")
        right.set_ylabel("loss over dense (nats per token)")
    style.caption(
        fig,
        frame,
        "Bands: 95% intervals over documents; those of every method are in the CSV. Rows with all methods have "
        f"logarithmic axes; the loss is linear below {style.LINEAR_BELOW}. Paper: Figure 4 prints no values.",
    )
    return fig


def _draw_methods(left: Axes, right: Axes, lines: pd.DataFrame) -> None:
    """Draw every method at one context, without bands, which would cover each other; shades tell settings apart."""
    settings = lines.drop_duplicates("series").groupby("method", sort=False).series.agg(list)
    tints = {
        name: tint
        for method, names in settings.items()
        for name, tint in zip(names, colors.shades(colors.color(str(method)), len(names)))
    }
    for series, points in lines.groupby("series", sort=False):
        method, color = points.method.iloc[-1], tints[series]
        for ax, shown in ((left, points), (right, style.losses(points))):
            style.line(ax, shown.assign(low=math.nan, high=math.nan), str(series), method, color=color)
    # The loss of random blocks would flatten the other lines on linear axes.
    style.log_axis(left)
    style.loss_axis(right, [lines.delta.min(), lines.delta.max()])
