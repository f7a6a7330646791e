"""Figure 4: perplexity against sparsity, one line a context, one row of panels a model and gate.

Beside the perplexity, which the paper draws, stands the paired loss: documents differ so much from each
other that the perplexities' own intervals hide what sparsity costs.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from seerbench.artefacts import sources, style, summaries
from seerbench.results import Run


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """SeerAttention at each trained gate, dense at sparsity 0: of `contexts-math` where a run has it."""
    every = run.table("perplexity")
    name = "contexts-math" if (every.experiment == "contexts-math").any() else "contexts"
    rows = sources.experiments(run, "perplexity", name, "perplexity")
    # Model by model: a loss is against the dense forward of the same model.
    models = [group for _, group in rows.groupby("model", sort=False)]
    cells = pd.concat([summaries.perplexities(group, summaries.dense_rows(run, group)) for group in models])
    seer = cells[(cells.method == "seer") & ~cells.gate.astype(str).str.contains("untrained")]
    if seer.empty:
        raise sources.unmeasured(
            run, "perplexity of SeerAttention in the experiment 'contexts'", "perplexity PRESET contexts"
        )
    parts = []
    for (model, gate), group in seer.groupby(["model", "gate"], dropna=False, sort=True):
        dense = cells[(cells.method == "dense") & (cells.model == model)]
        panel = style.display(str(model), gate)
        parts.append(pd.concat([dense.assign(sparsity_realised=0.0), group]).assign(panel=panel))
    frame = pd.concat(parts)
    x = frame.sparsity_realised.fillna(frame.sparsity_requested)
    frame = frame.assign(x=x, series=frame.context.map(style.size), label=sources.label(run, rows))
    return sources.tidy(frame.rename(columns={"value": "y"}).sort_values(["panel", "context", "x"]))


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Two panels a model and gate: perplexity, delta NLL."""
    panels = list(frame.panel.unique())
    fig, axes = style.figure(len(panels), 2, 0.6 + 2.5 * len(panels))
    contexts = sorted(frame.context.unique())
    tints = dict(zip(contexts, style.shades(style.colour("seer"), len(contexts))))
    for place, panel in enumerate(panels):
        left, right = axes[2 * place], axes[2 * place + 1]
        for context, points in frame[frame.panel == panel].groupby("context"):
            style.line(left, points, style.size(context), "seer", color=tints[context])
            points = points.drop(columns=["y", "low", "high"])
            points = points.rename(columns={"delta": "y", "delta_low": "low", "delta_high": "high"})
            style.line(right, points, style.size(context), "seer", color=tints[context])
        left.set(title=panel, xlabel="blocks skipped (realised)", ylabel="perplexity")
        right.set(title="against dense, paired", xlabel="blocks skipped (realised)")
        right.set_ylabel("delta NLL (nats a token)")
        left.legend(title="context", loc="upper left")
    style.caption(fig, frame, "Bands: 95% over documents. Paper: Figure 4 prints no values.")
    return fig
