"""Beyond the paper: what a method loses against what it saves, on the same model and text.

Loss is the paired delta NLL of the experiment `contexts`; speed-up is that of the sweep `methods` on q, k, v
captured in the same model, so that the masks that cost the loss are those that are timed. Right and low is good.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from seerbench.artefacts import aggregates, colors, frames, style
from seerbench.artefacts.fig6 import STAGES
from seerbench.rows.store import Run

GATE = ":v1"  # the paper's gate; the sweep times one gate a block size
KEY = ["method", "sparsity_requested"]


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """A line a method, sparsity and stage at the longest context that has both: x the speed-up, y the delta NLL."""
    rows = frames.experiment(run, "perplexity", "contexts", "perplexity")
    losses = aggregates.perplexities(rows, aggregates.dense_rows(run, rows))
    losses = losses[(losses.method != "seer") | losses.gate.astype(str).str.endswith(GATE)]
    cells, samples = frames.timed(run, "methods")
    of_model = cells.inputs.isin([f"captured:{model}" for model in losses.model.unique()])
    both = sorted(set(losses.context) & set(cells[of_model].context))
    if not both:
        raise frames.unmeasured(
            run,
            "cells",
            "timings of `methods` on the model and at a context of `contexts`",
            "latency PRESET methods CONTEXT",
        )
    losses, cells = losses[losses.context == both[-1]], cells[of_model & (cells.context == both[-1])]
    losses = losses.drop(columns=["low", "high"])  # the perplexity's own
    losses = losses.rename(columns={"delta": "y", "delta_low": "low", "delta_high": "high"})
    losses = losses[["model", "corpus", "context", "gate", *KEY, "y", "low", "high"]]
    parts = []
    for stage in STAGES:
        fast = aggregates.speedups(cells, samples, stage)
        fast = fast[fast.sparsity_requested.notna()].drop(columns=["model", "context"])
        fast = fast.rename(columns={"value": "x", "low": "x_low", "high": "x_high"})
        parts.append(losses.merge(fast, on=KEY).assign(panel=stage))
    frame = pd.concat(parts).assign(label=frames.label(run, rows, cells, timed=True))
    frame["rank"] = frame.method.map(colors.rank)
    frame = frame.sort_values(
        ["panel", "rank", "method", "sparsity_requested"], ascending=[False, True, True, True]
    )
    return frames.tidy(frame, extra=("x_low", "x_high"))


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Two panels: choosing the blocks included, and the attention alone."""
    fig, axes = style.figure(1, len(STAGES), 3.4, sharey=True)
    for ax, (stage, (_, how)) in zip(axes, STAGES.items()):
        for method, points in frame[frame.panel == stage].groupby("method", sort=False):
            points = points.sort_values("sparsity_requested")
            colour = colors.colour(method)
            known = points[points.x.notna() & points.y.notna()]
            ax.errorbar(
                known.x,
                known.y,
                xerr=[known.x - known.x_low, known.x_high - known.x],
                yerr=[known.y - known.low, known.high - known.y],
                color=colour,
                marker=colors.marker(method),
                elinewidth=0.6,
                label=colors.display(method),
            )
            for point in known.itertuples():
                ax.annotate(
                    f"{point.sparsity_realised:.2f}",
                    (point.x, point.y),
                    xytext=(3, 3),
                    textcoords="offset points",
                    fontsize=5,
                    color=colour,
                )
        ax.axvline(1, color="black", linewidth=0.8)
        ax.axhline(0, color="black", linewidth=0.4)
        ax.set(title=how, xlabel="speed-up over dense (x)")
    axes[0].set_ylabel("delta NLL (nats a token)")
    known = {text: handle for ax in axes for handle, text in zip(*ax.get_legend_handles_labels())}
    fig.legend(known.values(), known.keys(), loc="outside upper center", ncols=4, fontsize=6)
    bases = ", ".join(colors.display(base) for base in frame.base.dropna().unique())
    place = f"{', '.join(frame.model.unique())} at {style.size(frame.context.max())}"
    style.caption(
        fig,
        frame,
        f"{place}, {', '.join(frame.corpus.unique())}; numbers: blocks skipped (realised) in the layer timed. "
        f"Speed-up over {bases}, 95% over rounds; delta NLL 95% over documents, paired. "
        "Left of 1: slower than dense. The paper has no such figure.",
    )
    return fig
