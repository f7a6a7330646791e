"""Figure 6: attention speed-up over dense against the sparsity that each method realised."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
from matplotlib.figure import Figure

from seerbench.artefacts import aggregates, colors, frames, labels, style
from seerbench.errors import MissingRows
from seerbench.rows.store import Run

OUR_KERNELS = ("block_sparse", "block_sparse-128")
MARKERS = {
    "-": "Filled markers, solid lines",
    ":": "hollow markers, dotted lines",
}  # by line style, for the caption


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return speed-ups of the sweep `methods` (total and attend) and, for random masks, of the sweep `kernel`."""
    cells, samples = frames.timings(run, "methods")
    cells = cells[~aggregates.is_control(cells.method)]
    methods = set(cells.method)
    label = labels.label(run, cells, timed=True)
    parts = [aggregates.speedups(cells, samples, stage) for stage in style.STAGE_LINES]
    texts = [str(label)] * len(parts)
    try:
        of_kernels, samples = frames.timings(run, "kernel")
    except MissingRows:
        pass  # The figure is about methods, and a run may have these without kernels.
    else:
        # Of the kernels, only ours on random masks are shown: they bound what a method on them can reach.
        of_kernels = of_kernels[(of_kernels["mask"] == "dense") | of_kernels.method.isin(OUR_KERNELS)]
        parts.append(aggregates.speedups(of_kernels, samples, "attend"))
        other = labels.label(run, of_kernels, timed=True)
        if replace(label, commits=()) == replace(other, commits=()):
            # They differ in nothing else, so that one caption names all commits.
            texts = [str(labels.label(run, cells, of_kernels, timed=True))] * len(parts)
        else:
            texts.append(str(other))
    frame = frames.tidy(*(part.assign(label=text) for part, text in zip(parts, texts)))
    if frame.empty:
        what = "sparse methods in the sweep 'methods'"
        raise MissingRows("cells", what, "latency PRESET methods CONTEXT", run.folder)
    # A method that could not run has one line, not one per stage. A dense method has one too: it plans nothing,
    # so its two stages are the same measurement.
    dense = frame.sparsity_requested.isna() & (frame.sparsity_realised == 0)
    one_line = ((frame.status != "measured") | dense) & frame.method.isin(methods)
    frame = frame[~one_line | (frame.stage == "total")]
    frame["x"] = frame.sparsity_realised.fillna(frame.sparsity_requested)
    frame["rank"] = frame.method.map(colors.rank)
    frame = frame.rename(columns={"value": "y"}).sort_values(
        ["context", "rank", "method", "stage", "x"], ascending=[True, True, True, False, True]
    )
    return frames.tidy(frame)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one panel per context. Solid lines include block selection; dotted lines are the attention alone."""
    # A dense kernel that was refused has no place on the axis; the caption gives its reason.
    methods = sorted(frame[frame.x.notna()].method.unique(), key=colors.rank)
    contexts = sorted(frame.context.unique())
    columns = min(3, len(contexts))
    rows = -(-len(contexts) // columns)
    fig, axes = style.figure(rows, columns, 0.9 + 2.4 * rows + 0.14 * (len(methods) / 4), sharex=True, sharey=True)
    for ax, context in zip(axes, contexts):
        at_context = frame[frame.context == context]
        for (method, stage), points in at_context.groupby(["method", "stage"], sort=False):
            dash, _ = style.STAGE_LINES[stage]
            style.line(ax, points, colors.display(method), method, linestyle=dash, fill=dash == "-")
        ax.axhline(1, color="black", linewidth=0.8)
        # Our kernels are compared with torch's dense kernel, which on a GPU is FlashAttention-2 too.
        compared = at_context[~at_context.method.isin(OUR_KERNELS)]
        bases = (compared if len(compared) else at_context).base.dropna().unique()
        ax.set_title(f"context {style.size(context)}, over {', '.join(map(colors.display, bases))}", fontsize=7)
        ax.set_xlabel("blocks skipped (realised)")
        style.log_axis(ax)
    for ax in axes[::columns]:
        ax.set_ylabel("speed-up over dense (x)")
    for ax in axes[len(contexts) :]:
        ax.set_axis_off()
    style.legend_of_methods(fig, axes, methods)
    legend = "; ".join(f"{MARKERS[dash]}: {meaning}" for dash, meaning in style.STAGE_LINES.values())
    style.caption(
        fig,
        frame,
        f"Below 1, the method is slower than dense. {legend}. Bands: 95% intervals over rounds. "
        "Paper: Figure 6 prints no values.",
        *aggregates.random_input_remarks(frame),
    )
    return fig
