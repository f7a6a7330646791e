"""Figure beyond the paper: what a model gains from its context, on the same tokens with more text before them.

The perplexity of a longer window is lower on average, but a longer window also has other tokens. Here the scored
tokens are the same at every length: the last ones of windows that all end at the same token (`scored` in a preset).
A model that ignores distant text has a flat line, and nothing that skips distant text can cost it anything.

The last panel has the look-ups that dense attention answers, before YaRN and after it, with facts anywhere in the
prompt. YaRN is meant to keep what the model could do at its own length.
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
# experiment of tasks -> the experiment above on the same model
OF_TASKS = {"retrieval": "use", "yarn": "use_yarn"}
TOKENS, LOOKUPS = "same tokens", "look-ups"  # the panels
KEPT = 0.8  # The share of look-ups before YaRN that a dotted line marks: an aim of this project.
FACTS = ("model", "corpus", "context", "method", "recipe")
TINTS = {"use": colors.color("dense"), "use_yarn": colors.color("minference")}


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one line per panel, experiment and context, of dense attention.

    In the panel TOKENS y is the perplexity. `delta` is the loss in nats per token minus that at the shortest
    context, paired by document; negative numbers are a gain. `scored` is the number of scored tokens per document.
    In the panel LOOKUPS y is the percentage of right look-ups. Raises MissingRows if the run has neither experiment
    of the first panel.
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
    perplexities = pd.DataFrame(lines).assign(panel=TOKENS, label=str(labels.label(run, rows)))
    return frames.tidy(perplexities, _lookups(run), extra=["scored"])


def _lookups(run: Run) -> pd.DataFrame:
    """Return the right look-ups of dense attention, as unweighted mean over the tasks that all experiments have."""
    rows = requests.rows(run, "tasks")
    rows = rows[rows.experiment.isin(OF_TASKS) & (rows.method == "dense") & rows.correct.notna()]
    tasks = set.intersection(*(set(tasks) for _, tasks in rows.groupby("experiment").task), set(rows.task))
    rows = rows[rows.task.isin(tasks)]
    lines = []
    for (experiment, context), cell in rows.groupby(["experiment", "context"]):
        counts = [(int(part.correct.sum()), len(part)) for _, part in cell.groupby("task")]
        percent = (100 * number for number in bootstrap.mean_proportion(counts))
        line: dict[str, Any] = {
            "panel": LOOKUPS,
            "series": OF_TASKS[str(experiment)],
            "context": context,
            "x": context,
        }
        line |= {name: cell[name].iloc[0] for name in ("model", "corpus", "method")}
        line |= {"source": "measured", "status": "measured", "reason": None, "task": ", ".join(sorted(tasks))}
        line |= {"metric": "correct", "unit": "%", "count": len(cell)} | dict(zip(("y", "low", "high"), percent))
        lines.append(line)
    return pd.DataFrame(lines).assign(label=str(labels.label(run, rows))) if lines else pd.DataFrame()


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw perplexity, change of the loss and right look-ups over the context, with one line per experiment."""
    fig, (left, middle, right) = style.figure(1, 3, 2.9)
    tokens, lookups = frame[frame.panel == TOKENS], frame[frame.panel == LOOKUPS]
    for experiment, points in tokens.groupby("series", sort=False):
        tint = TINTS[str(experiment)]
        scored = f"last {points.scored.iloc[0]:.0f} of {style.size(points.x.max())}"
        style.line(left, points, f"{EXPERIMENTS[str(experiment)]}: {scored}", "dense", color=tint)
        points = points.drop(columns=["y", "low", "high"])
        points = points.rename(columns={"delta": "y", "delta_low": "low", "delta_high": "high"})
        style.line(middle, points, str(experiment), "dense", color=tint)
    for experiment, points in lookups.groupby("series", sort=False):
        style.line(right, points, EXPERIMENTS[str(experiment)], "dense", color=TINTS[str(experiment)])
    for ax, points in ((left, tokens), (middle, tokens), (right, lookups)):
        if len(points):
            style.context_axis(ax, points.x)
            ax.tick_params(axis="x", labelsize=6)
            ax.set_xlabel("length of the window (tokens)")
    left.set(title="the same tokens", ylabel="perplexity")
    middle.set(title="against the shortest window", ylabel="change of the loss (nats per token)")
    left.legend(fontsize=5.5)
    documents = " and ".join(f"{count:.0f}" for count in dict.fromkeys(tokens["count"]))
    notes = [
        f"Dense attention on {', '.join(frame.corpus.unique())}. All windows of a line end at the same token and "
        f"score the same last tokens ({documents} documents). Bands: 95% intervals over documents. The paper has "
        "no such figure."
    ]
    if lookups.empty:
        style.empty_panel(right, "This run has no look-ups of dense attention.")
    else:
        right.set(title="right look-ups", ylabel="% correct", ylim=(0, 100))
        notes.append(f"Look-ups: {lookups.task.iloc[0]}, unweighted mean [bands: 95%, from Wilson's intervals].")
        before = lookups[lookups.series == "use"]
        if len(before):
            longest = before.loc[before.x.idxmax()]
            right.axhline(KEPT * longest.y, color="0.5", linestyle=":")
            notes.append(f"Dotted: {KEPT:.0%} of the look-ups before YaRN at {style.size(longest.x)}.")
    style.caption(fig, frame, *notes)
    return fig
