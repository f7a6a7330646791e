"""Figure beyond the paper: what a model gains from its context, on the same tokens with more text before them.

The perplexity of a longer window is lower on average, but a longer window also has other tokens. Here the scored
tokens are the same at every length: the last ones of windows that all end at the same token (`scored` in a preset).
A model that ignores distant text has a flat line, and nothing that skips distant text can cost it anything.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from seerbench.artefacts import aggregates, colors, frames, labels, style
from seerbench.errors import MissingRows
from seerbench.rows import bootstrap, requests
from seerbench.rows.store import Run

# experiment -> what its line is called. Each has its own model and its own scored tokens.
EXPERIMENTS = {"use": "before YaRN", "use_yarn": "after YaRN"}
FACTS = ("model", "corpus", "context", "method", "recipe")
TINTS = {"use": colors.color("dense"), "use_yarn": colors.color("minference")}


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one line per experiment and context: perplexity of dense attention (y) and the change of its loss.

    `delta` is the loss in nats per token minus that at the shortest context, paired by document; negative numbers
    are a gain. `scored` is the number of scored tokens per document. Raises MissingRows if the run has neither
    experiment.
    """
    rows = requests.rows(run, "perplexity")
    rows = rows[rows.experiment.isin(EXPERIMENTS) & (rows.method == "dense") & (rows.status == "measured")]
    if rows.empty:
        what = "perplexity rows of the experiment 'use'"
        raise MissingRows("perplexity", what, "perplexity PRESET use", run.folder)
    lines = []
    for experiment, of_experiment in rows.groupby("experiment", sort=True):
        nll = {context: group.set_index("document").nll for context, group in of_experiment.groupby("context")}
        for context, losses in nll.items():
            facts = of_experiment[of_experiment.context == context].iloc[0]
            line: dict[str, Any] = {name: facts[name] for name in FACTS}
            line |= {"source": "measured", "status": "measured", "reason": None, "series": experiment, "x": context}
            line |= {"metric": "perplexity", "unit": "perplexity", "count": len(losses), "scored": facts.tokens}
            line |= dict(zip(("y", "low", "high"), bootstrap.perplexity(losses)))
            line |= dict(zip(aggregates.DELTAS, bootstrap.paired_delta(nll[min(nll)], losses)))
            lines.append(line)
    frame = pd.DataFrame(lines).assign(label=str(labels.label(run, rows)))
    return frames.tidy(frame, extra=["scored"])


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw the perplexity over the context, and beside it the change of the loss, with one line per experiment."""
    fig, (left, right) = style.figure(1, 2, 2.9)
    for experiment, points in frame.groupby("series", sort=False):
        tint = TINTS[str(experiment)]
        tokens = f"the last {points.scored.iloc[0]:.0f} of {style.size(points.x.max())}"
        words = f"{EXPERIMENTS[str(experiment)]}: {tokens}"
        style.line(left, points, words, "dense", color=tint)
        points = points.drop(columns=["y", "low", "high"])
        points = points.rename(columns={"delta": "y", "delta_low": "low", "delta_high": "high"})
        style.line(right, points, words, "dense", color=tint)
    for ax in (left, right):
        style.context_axis(ax, frame.x)
        ax.set_xlabel("length of the window (tokens)")
    left.set(title="perplexity of the same tokens", ylabel="perplexity")
    right.set(title="against the shortest window, paired", ylabel="delta NLL (nats per token)")
    left.legend()
    documents = " and ".join(f"{count:.0f}" for count in dict.fromkeys(frame["count"]))
    style.caption(
        fig,
        frame,
        f"Dense attention on {', '.join(frame.corpus.unique())}. All windows of a line end at the same token and "
        f"score the same last tokens ({documents} documents). Bands: 95% intervals over documents. The paper has "
        "no such figure.",
    )
    return fig
