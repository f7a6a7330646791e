"""Figure beyond the paper: speed-up of sparse decoding over dense decoding, by context, batch and sparsity.

The oracle is left out, as in Figure 6: its attention is that of the other methods, and nobody would run its plan.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from seerbench.artefacts import aggregates, colors, frames, labels, style
from seerbench.errors import MissingRows
from seerbench.rows.store import Run


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return the speed-ups of the sweep `decode` at the stages total and attend. A panel is a batch size."""
    cells, samples = frames.timings(run, "decode")
    cells = cells[~aggregates.is_control(cells.method)]
    parts = [
        aggregates.speedups(cells[cells.batch == batch], samples, stage).assign(panel=f"batch {batch}")
        for batch in sorted(cells.batch.unique())
        for stage in style.STAGE_LINES
    ]
    frame = frames.tidy(*parts)
    if frame.empty:
        what = "sparse methods in the sweep 'decode'"
        raise MissingRows("cells", what, "latency PRESET decode CONTEXT", run.folder)
    # What could not run has one line, not one per stage.
    frame = frame[(frame.status == "measured") | (frame.stage == "total")]
    frame["label"] = str(labels.label(run, cells, timed=True))
    frame["x"] = frame.sparsity_realised.fillna(frame.sparsity_requested)
    frame["rank"], frame["place"] = frame.method.map(colors.rank), frame.panel.map(_batch)
    frame = frame.rename(columns={"value": "y"}).sort_values(
        ["place", "context", "rank", "method", "stage", "x"], ascending=[True, True, True, True, False, True]
    )
    return frames.tidy(frame)


def _batch(panel: str) -> int:
    """Return the batch size of a panel."""
    return int(panel.removeprefix("batch "))


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw a row of panels per batch size and a column per context, with what reading fewer bytes allows."""
    methods = sorted(frame.method.unique(), key=colors.rank)
    batches, contexts = sorted(frame.panel.unique(), key=_batch), sorted(frame.context.unique())
    fig, axes = style.figure(
        len(batches), len(contexts), 1.1 + 1.9 * len(batches), sharex=True, sharey=True, squeeze=False
    )
    places = [(batch, context) for batch in batches for context in contexts]
    for number, (ax, (batch, context)) in enumerate(zip(axes, places)):
        here = frame[(frame.panel == batch) & (frame.context == context)]
        for (method, stage), points in here.groupby(["method", "stage"], sort=False):
            dash, _ = style.STAGE_LINES[stage]
            style.line(ax, points, colors.display(method), method, linestyle=dash, fill=dash == "-")
        ax.axhline(1, color="black", linewidth=0.8)
        known = here.x[here.y.notna()]
        if len(known):
            x = np.linspace(known.min(), known.max(), 50)
            ax.plot(x, 1 / (1 - x), color="0.6", linewidth=0.8, linestyle="--")
        ax.set_title(f"{batch}, context {style.size(context)}", fontsize=7)
        style.log_axis(ax)
        if number % len(contexts) == 0:
            ax.set_ylabel("speed-up over dense (x)")
        if number >= len(places) - len(contexts):
            ax.set_xlabel("blocks skipped (realised)")
    style.legend_of_methods(fig, axes, methods)
    style.caption(
        fig,
        frame,
        "One new token in one layer. Filled markers, solid lines: block selection included; hollow markers, dotted "
        "lines: attention only. Dashed: as many times faster as fewer blocks are read. Below 1, the method is "
        "slower than dense. Bands: 95% intervals over rounds.",
        "Inputs and the gate's weights are random: which blocks are read means nothing, how many does.",
    )
    return fig
