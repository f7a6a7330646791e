"""Figure 9: does the gate need RoPE to go beyond the length it was trained at?"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from seerbench.artefacts import aggregates, colors, frames, style
from seerbench.rows.store import Run

ARMS = {"with": "gate with RoPE", "without": "gate without RoPE"}


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Perplexity over context of both gates, and of dense; `trained_at` is the gate's training length."""
    rows = frames.experiment(run, "perplexity", "rope", "perplexity")
    dense = aggregates.dense_rows(run, rows)
    dense = dense[dense.context.isin(rows.context.unique())]
    if not len(rows[rows.method == "dense"]):
        rows = pd.concat([dense, rows], ignore_index=True)
    cells = aggregates.perplexities(rows)
    bare = cells.gate.astype(str).str.contains("norope")
    cells["panel"] = bare.map({True: ARMS["without"], False: ARMS["with"]})
    cells.loc[cells.method == "dense", "panel"] = None  # drawn in both panels
    training = run.table("training")
    lengths = training[training.kind == "distill"].groupby("name").context.max()
    cells["trained_at"] = [
        lengths.get(gate.split(":")[0]) if isinstance(gate, str) else None for gate in cells.gate
    ]
    cells = cells.rename(columns={"value": "y"}).assign(x=cells.context, label=frames.label(run, rows))
    cells = cells.sort_values(["panel", "sparsity_requested", "context"], na_position="first")
    return frames.tidy(cells, extra=["trained_at"])


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Two panels on one axis."""
    fig, axes = style.figure(1, 2, 3.0, sharey=True)
    sparsities = sorted(frame.sparsity_requested[frame.method != "dense"].dropna().unique())
    tints = dict(zip(sparsities, colors.shades(colors.colour("seer"), len(sparsities))))
    for ax, name in zip(axes, ARMS.values()):
        arm = frame[frame.panel == name]
        style.line(ax, frame[frame.method == "dense"], "Dense", "dense")
        for sparsity, points in arm.groupby("sparsity_requested"):
            style.line(ax, points, f"{sparsity:.0%} skipped", "seer", color=tints[sparsity])
        if arm.trained_at.notna().any():
            ax.axvline(arm.trained_at.max(), color="0.5", linestyle=":", linewidth=1, label="trained up to here")
        style.context_axis(ax, [*frame.context, *arm.trained_at.dropna()])
        ax.set_title(name)
    axes[0].set_ylabel("perplexity")
    known = {text: handle for ax in axes for handle, text in zip(*ax.get_legend_handles_labels())}
    fig.legend(known.values(), known.keys(), loc="outside right upper")
    style.caption(fig, frame, "Bands: 95% over documents. Paper: Figure 9 prints no values.")
    return fig
