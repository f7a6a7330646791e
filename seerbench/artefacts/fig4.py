"""Figure 4: perplexity against sparsity, one line a context, one row of panels a model and gate.

A last row, which the paper does not have, shows every method of the experiment `contexts` at its longest context.
Beside the perplexity, which the paper draws, stands the paired loss: documents differ so much from each
other that the perplexities' own intervals hide what sparsity costs.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from seerbench.artefacts import aggregates, colors, frames, style
from seerbench.rows.store import Run


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """SeerAttention at each trained gate, dense at sparsity 0: of `contexts-math` where a run has it."""
    every = run.table("perplexity")
    name = "contexts-math" if (every.experiment == "contexts-math").any() else "contexts"
    rows = frames.experiments(run, "perplexity", name, "perplexity")
    # Model by model: a loss is against the dense forward of the same model.
    models = [group for _, group in rows.groupby("model", sort=False)]
    cells = pd.concat([aggregates.perplexities(group, aggregates.dense_rows(run, group)) for group in models])
    seer = cells[(cells.method == "seer") & ~cells.gate.astype(str).str.contains("untrained")]
    if seer.empty:
        raise frames.unmeasured(
            run,
            "perplexity",
            "perplexity of SeerAttention in the experiment 'contexts'",
            "perplexity PRESET contexts",
        )
    parts = []
    for (model, gate), group in seer.groupby(["model", "gate"], dropna=False, sort=True):
        dense = cells[(cells.method == "dense") & (cells.model == model)]
        panel = colors.display(str(model), gate)
        parts.append(pd.concat([dense.assign(sparsity_realised=0.0), group]).assign(panel=panel))
    frame = pd.concat(parts).assign(label=frames.label(run, rows))
    frame["series"] = frame.context.map(style.size)
    frame = pd.concat([frame, _methods(run)])
    frame["x"] = frame.sparsity_realised.fillna(frame.sparsity_requested)
    frame = frame.rename(columns={"value": "y"}).sort_values(["panel", "context", "series", "x"], kind="stable")
    return frames.tidy(frame)


def _methods(run: Run) -> pd.DataFrame:
    """Every sparse method of `contexts` at the longest context; nothing where a run has SeerAttention alone."""
    rows = run.table("perplexity")
    rows = rows[(rows.experiment == "contexts")]
    rows = rows[rows.context == rows.context.max()]
    cells = aggregates.perplexities(rows, aggregates.dense_rows(run, rows)) if len(rows) else pd.DataFrame()
    if cells.empty or set(cells.method) <= {"dense", "seer"}:
        return pd.DataFrame()
    cells = cells[(cells.method != "dense") & ~cells.gate.astype(str).str.contains("untrained")]
    names = [colors.display(method, gate) for method, gate in zip(cells.method, cells.gate)]
    return cells.assign(panel=METHODS, series=names, label=frames.label(run, rows))


METHODS = "every method"


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Two panels a model and gate: perplexity, delta NLL. Then the same for every method at one context."""
    panels = sorted(frame.panel.unique(), key=lambda panel: panel == METHODS)
    fig, axes = style.figure(len(panels), 2, 0.6 + 2.5 * len(panels))
    contexts = sorted(frame.context.unique())
    tints = dict(zip(contexts, colors.shades(colors.colour("seer"), len(contexts))))
    for place, panel in enumerate(panels):
        left, right = axes[2 * place], axes[2 * place + 1]
        here = frame[frame.panel == panel]
        for (context, series), points in here.groupby(["context", "series"], sort=False):
            method = points.method.iloc[-1] if panel == METHODS else "seer"
            shade = colors.colour(method) if panel == METHODS else tints[context]
            style.line(left, points, series, method, color=shade)
            points = points.drop(columns=["y", "low", "high"])
            points = points.rename(columns={"delta": "y", "delta_low": "low", "delta_high": "high"})
            style.line(right, points, series, method, color=shade)
        where = f", context {style.size(here.context.iloc[0])}" if panel == METHODS else ""
        left.set(title=panel + where, xlabel="blocks skipped (realised)", ylabel="perplexity")
        right.set(title="against dense, paired", xlabel="blocks skipped (realised)")
        right.set_ylabel("delta NLL (nats a token)")
        if panel == METHODS:
            left.legend(loc="upper left", fontsize=5)
            style.log_axis(left)  # what random blocks lose would flatten the others
            right.set_yscale("symlog", linthresh=0.02)
        else:
            left.legend(title="context", loc="upper left")
    style.caption(fig, frame, "Bands: 95% over documents. Paper: Figure 4 prints no values.")
    return fig
