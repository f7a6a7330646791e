"""Figure 6: attention speed-up over dense against the sparsity that each method really reaches."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from seerbench.artefacts import aggregates, colors, frames, style
from seerbench.errors import ResultsError
from seerbench.rows.store import Run

OURS = ("block_sparse", "block_sparse-128")
STAGES = {"total": ("-", "choosing included"), "attend": (":", "attention alone")}
LINES = {"-": "Filled, solid", ":": "hollow, dotted"}


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Speed-ups of the sweep `methods` (total and attend) and, with random masks, of the sweep `kernel`."""
    parts = []
    cells, samples = frames.timed(run, "methods")
    cells = cells[~cells.method.isin(aggregates.BOUNDS)]
    whole = set(cells.method)
    label = frames.label(run, cells, timed=True)
    parts += [aggregates.speedups(cells, samples, stage).assign(label=label) for stage in STAGES]
    try:
        cells, samples = frames.timed(run, "kernel")
    except ResultsError:
        pass  # a run may have the methods without the kernels; the figure is about the methods
    else:
        # The figure is about methods: of the kernels, ours on random masks shows what a method can reach.
        cells = cells[(cells["mask"] == "dense") | cells.method.isin(OURS)]
        kernels = aggregates.speedups(cells, samples, "attend")
        parts.append(kernels.assign(label=frames.label(run, cells, timed=True)))
    frame = frames.tidy(*parts)
    if frame.empty:
        raise frames.unmeasured(
            run, "cells", "sparse methods in the sweep 'methods'", "latency PRESET methods CONTEXT"
        )
    # A method that could not run says so once, not once a stage; and a dense kernel beside the reference
    # chooses nothing, so that its two stages are one point.
    dense = frame.sparsity_requested.isna() & (frame.sparsity_realised == 0)
    twice = ((frame.status != "measured") | dense) & frame.method.isin(whole)
    frame = frame[~twice | (frame.stage == "total")]
    frame["x"] = frame.sparsity_realised.fillna(frame.sparsity_requested)
    frame["rank"] = frame.method.map(colors.rank)
    frame = frame.rename(columns={"value": "y"}).sort_values(
        ["context", "rank", "method", "stage", "x"], ascending=[True, True, True, False, True]
    )
    return frames.tidy(frame)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """One panel a context; solid: with choosing the blocks, dotted: the attention alone."""
    # A dense kernel that was refused has no place on the axis; the caption has its reason.
    methods = sorted(frame[frame.x.notna()].method.unique(), key=colors.rank)
    contexts = sorted(frame.context.unique())
    columns = min(3, len(contexts))
    rows = -(-len(contexts) // columns)
    fig, axes = style.figure(rows, columns, 0.9 + 2.4 * rows + 0.14 * (len(methods) / 4), sharex=True)
    for ax, context in zip(axes, contexts):
        here = frame[frame.context == context]
        for (method, stage), points in here.groupby(["method", "stage"], sort=False):
            dash, _ = STAGES[stage]
            style.line(ax, points, colors.display(method), method, linestyle=dash, fill=dash == "-")
        ax.axhline(1, color="black", linewidth=0.8)
        ax.set(title=f"context {style.size(context)}", xlabel="blocks skipped (realised)")
        style.log_axis(ax)
    for ax in axes[::columns]:
        ax.set_ylabel("speed-up over dense (x)")
    for ax in axes[len(contexts) :]:
        ax.set_axis_off()
    known: dict[str, object] = {}
    for ax in axes:
        for handle, text in zip(*ax.get_legend_handles_labels()):
            known.setdefault(text, handle)  # a method's first line is its filled one
    shown = [name for name in map(colors.display, methods) if name in known]
    fig.legend([known[name] for name in shown], shown, loc="outside upper center", ncols=4, fontsize=6)
    bases = ", ".join(colors.display(base) for base in frame.base.dropna().unique())
    how = "; ".join(f"{LINES[dash]}: {what}" for dash, what in STAGES.values())
    style.caption(
        fig,
        frame,
        f"Over {bases}. {how}. Bands: 95% over rounds. Below 1: slower than dense. "
        "Paper: Figure 6 prints no values.",
    )
    return fig
