"""Figure 8: time and memory of computing attention and the gate's target in one pass, beside dense and naive."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from seerbench.artefacts import aggregates, colors, frames, labels, style
from seerbench.rows.store import Run

LATENCY, MEMORY = "a", "b"
FLASH = "sdpa-flash"  # the implementation of torch's dense kernel that is FlashAttention-2


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return the median latency in ms (a) and the peak memory in MiB (b) of each kernel at each context."""
    cells, samples = frames.timings(run, "training_kernel")
    times = aggregates.latencies(cells, samples)
    times = times.rename(columns={"value": "y"}).assign(panel=LATENCY)
    peaks = cells.assign(source="measured", panel=MEMORY, metric="peak memory", unit="MiB", y=cells.peak_mib)
    peaks["model"] = peaks.inputs
    # On a CPU torch does not count what it allocates, so a measured cell may have no peak.
    peaks = peaks[peaks.y.notna() | (peaks.status != "measured")]
    peaks = peaks.reindex(columns=[name for name in times if name in peaks])
    frame = frames.tidy(times, peaks).assign(label=str(labels.label(run, cells, timed=True)))
    frame["x"] = frame.context
    frame["rank"] = frame.method.map(colors.rank)
    return frames.tidy(frame.sort_values(["panel", "rank", "method", "context"]))


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw latency and peak memory over the context, on logarithmic axes."""
    fig, (left, right) = style.figure(1, 2, 3.0)
    for ax, panel, title, unit in (
        (left, LATENCY, "(a) latency", "time (ms)"),
        (right, MEMORY, "(b) peak memory", "memory (MiB)"),
    ):
        rows = frame[frame.panel == panel]
        if not rows.y.notna().any():
            why = "this run did not count memory" if panel == MEMORY else rows.reason.dropna().iloc[0]
            style.empty_panel(ax, why)
            continue
        for method, points in rows.groupby("method", sort=False):
            flash = method == "dense" and (points.implementation == FLASH).any()
            style.line(ax, points, colors.display("fa2" if flash else method), method)
        style.context_axis(ax, frame.context)
        style.log_axis(ax)
        ax.set(title=title, ylabel=unit)
    if left.get_legend_handles_labels()[0]:
        left.legend()
    style.caption(
        fig,
        frame[frame.panel == LATENCY],
        "Bands: quartiles over rounds. The training kernel computes attention and the gate's target in one pass. "
        "Paper: Figure 8 prints no values.",
    )
    return fig
