"""Figure beyond the paper: the loss of each method against its speed-up, on the same model and text.

The loss is the paired delta NLL of the experiment `contexts`. The speed-up is that of the sweep `methods` on q, k
and v that were captured in the same model, so the masks that cause the loss are the masks that are timed. The loss
of a point is that at the realised sparsity of its timed cell, interpolated along the losses of its method
(rows/equal_sparsity.py). Points further right (faster) and lower (less loss) are better.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from seerbench.artefacts import aggregates, colors, frames, gate_sets, labels, style
from seerbench.errors import MissingRows
from seerbench.rows.gate_ref import PAPER_GATE
from seerbench.rows.schema import CAPTURED
from seerbench.rows.store import Run

NO_LOSS = "no loss was measured at its realised sparsity"


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one line per method, sparsity and stage: speed-up (x) and delta NLL (y).

    All lines are at the longest context that has both. SeerAttention is shown with the paper's gate, since the
    sweep times one gate per block size. Raises MissingRows if no context has both.
    """
    rows = frames.experiment(run, "perplexity", "contexts", "perplexity")
    cells, samples = frames.timings(run, "methods")
    # Captured in a model of these losses, at a context that the model was trained for.
    of_model = (cells.inputs_kind == CAPTURED) & cells.inputs_model.isin(rows.model.unique())
    of_model &= cells.inputs_trained_context.isna()
    both = sorted(set(rows.context) & set(cells[of_model].context))
    if not both:
        what = "timings of the sweep 'methods' on the model and at a context of the experiment 'contexts'"
        raise MissingRows("cells", what, "latency PRESET methods CONTEXT", run.folder)
    cells = cells[of_model & (cells.context == both[-1])]
    dense = aggregates.dense_rows(run, rows)
    at_context = rows[(rows.context == both[-1]) & rows.sparsity_requested.notna()]
    gated = at_context.gate.map(gate_sets.set_of)
    at_context = at_context[gated.isna() | (gated == PAPER_GATE)]
    lines = []
    for stage in style.STAGE_LINES:
        faster = aggregates.speedups(cells, samples, stage)
        faster = faster[faster.sparsity_requested.notna() & faster.method.isin(at_context.method)]
        faster = faster.rename(columns={"value": "x", "low": "x_low", "high": "x_high"})
        lines += [line | {"panel": stage} | _loss(at_context, dense, line) for line in faster.to_dict("records")]
    frame = pd.DataFrame(lines).assign(label=str(labels.label(run, rows, cells, timed=True)))
    frame["rank"] = frame.method.map(colors.rank)
    frame = frame.sort_values(
        ["panel", "rank", "method", "sparsity_requested"], ascending=[False, True, True, True]
    )
    return frames.tidy(frame, extra=("x_low", "x_high"))


def _loss(rows: pd.DataFrame, dense: pd.DataFrame, line: dict[Hashable, Any]) -> dict[str, Any]:
    """Return y, low and high of a timed line: the loss of its method at its realised sparsity."""
    rows = rows[rows.method == line["method"]]
    place = {"model": rows.model.iloc[0], "corpus": rows.corpus.iloc[0]}
    place |= dict.fromkeys(("y", "low", "high"), math.nan)
    if line["status"] != "measured":
        return place
    dense = dense[(dense.context == line["context"]) & (dense.corpus == place["corpus"])]
    loss = aggregates.loss_at(rows, dense, line["sparsity_realised"])
    if loss is None:
        return place | {"status": "missing", "reason": NO_LOSS}
    return place | dict(zip(("y", "low", "high"), loss)) | {"gate": rows.gate.iloc[0]}


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw two panels: with the time of block selection, and the attention alone."""
    fig, axes = style.figure(1, len(style.STAGE_LINES), 3.4, sharey=True)
    for ax, (stage, (_, meaning)) in zip(axes, style.STAGE_LINES.items()):
        for method, points in frame[frame.panel == stage].groupby("method", sort=False):
            points = points.sort_values("sparsity_requested")
            color = colors.color(method)
            known = points[points.x.notna() & points.y.notna()]
            ax.errorbar(
                known.x,
                known.y,
                xerr=[known.x - known.x_low, known.x_high - known.x],
                yerr=[known.y - known.low, known.high - known.y],
                color=color,
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
                    color=color,
                )
        ax.axvline(1, color="black", linewidth=0.8)
        ax.axhline(0, color="black", linewidth=0.4)
        ax.set(title=meaning, xlabel="speed-up over dense (x)")
    axes[0].set_ylabel("delta NLL (nats per token)")
    handles = {text: handle for ax in axes for handle, text in zip(*ax.get_legend_handles_labels())}
    fig.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, fontsize=6)
    bases = ", ".join(colors.display(base) for base in frame.base.dropna().unique())
    place = f"{', '.join(frame.model.unique())} at {style.size(frame.context.max())}"
    style.caption(
        fig,
        frame,
        f"{place}, {', '.join(frame.corpus.unique())}. Numbers: blocks skipped (realised) in the layer that was "
        f"timed. Speed-up over {bases} [95% interval over rounds]; left of 1, the method is slower. Delta NLL at "
        "that sparsity, interpolated between the measured ones [95% paired interval over documents]. The paper has "
        "no such figure.",
    )
    return fig
