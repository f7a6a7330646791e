"""Figure 9: gates with and without RoPE, at contexts up to and beyond the length that they were trained at.

The paper draws perplexities. Their intervals over documents are far wider than the effect, so the figure draws the
loss over dense on the same documents, on which the claim is judged; the perplexities are in the CSV.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from seerbench.artefacts import aggregates, colors, frames, gate_sets, labels, style
from seerbench.rows.gate_ref import WITHOUT_ROPE
from seerbench.rows.store import Run

WITH, WITHOUT = "gate with RoPE", "gate without RoPE"  # the panels


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return the perplexity of both gates and of dense; `trained_at` is the training length of the gate."""
    rows = frames.as_in_paper(frames.experiment(run, "perplexity", "rope", "perplexity"))
    dense = aggregates.dense_rows(run, rows)
    dense = dense[dense.context.isin(rows.context.unique())]
    if not len(rows[rows.method == "dense"]):
        rows = pd.concat([dense, rows], ignore_index=True)
    cells = aggregates.perplexities(rows)
    cells["panel"] = gate_sets.is_set(cells.gate, WITHOUT_ROPE).map({True: WITHOUT, False: WITH})
    cells.loc[cells.method == "dense", "panel"] = None  # Dense is drawn in both panels.
    training = run.table("training")
    lengths = training[training.kind == "distill"].groupby("name").context.max()
    cells["trained_at"] = [lengths.get(gate_sets.job_of(gate)) for gate in cells.gate]
    cells = cells.rename(columns={"value": "y"}).assign(x=cells.context, label=str(labels.label(run, rows)))
    cells = cells.sort_values(["panel", "sparsity_requested", "context"], na_position="first")
    return frames.tidy(cells, extra=["trained_at"])


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw the loss over dense: one panel per gate, with one line per sparsity, on a common y axis."""
    fig, axes = style.figure(1, 2, 3.0, sharey=True)
    sparsities = sorted(frame.sparsity_requested[frame.method != "dense"].dropna().unique())
    tints = dict(zip(sparsities, colors.shades(colors.color("seer"), len(sparsities))))
    for ax, panel in zip(axes, (WITH, WITHOUT)):
        lines = frame[frame.panel == panel]
        ax.axhline(0, color="black", linewidth=0.8, label="Dense")
        for sparsity, points in lines.groupby("sparsity_requested"):
            style.line(ax, style.losses(points), f"{sparsity:.0%} skipped", "seer", color=tints[sparsity])
        if lines.trained_at.notna().any():
            longest = lines.trained_at.max()
            ax.axvline(longest, color="0.5", linestyle=":", linewidth=1, label="training length of the gate")
        style.context_axis(ax, [*frame.context, *lines.trained_at.dropna()])
        ax.set_title(panel)
    axes[0].set_ylabel("loss over dense (nats per token)")
    handles = {text: handle for ax in axes for handle, text in zip(*ax.get_legend_handles_labels())}
    fig.legend(handles.values(), handles.keys(), loc="outside right upper")
    style.caption(
        fig,
        frame,
        "Loss over dense on the same documents. Bands: 95% paired intervals. Paper: Figure 9 draws perplexities "
        "and prints no values.",
    )
    return fig
