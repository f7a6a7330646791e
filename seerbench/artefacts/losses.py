"""Table beyond the paper: the loss over dense attention by requested sparsity, beside the paper's own.

The paper prints perplexities. Their logarithms differ by the loss in nats per token, which can be compared between
models and texts. The loss of this run is paired by document, so its interval is far narrower than those of the
perplexities in Table 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from seerbench.artefacts import aggregates, frames, gate_sets, labels, paper_numbers, style, table_format
from seerbench.artefacts import chart as charts
from seerbench.errors import MissingRows
from seerbench.rows import bootstrap
from seerbench.rows.gate_ref import PAPER_GATE, UNTRAINED
from seerbench.rows.store import Run

# The metrics of the frame, in the order of their lines.
LOSS, AGAINST = "loss", f"minus {PAPER_GATE}"
METRICS = (LOSS, AGAINST)
EXPERIMENT = "contexts"
# The report shows the paper's lines and this run's in one table.
BESIDE_THE_PAPER = True
PLACE = ["model", "corpus", "context"]
SMALL = 0.1  # Losses below this have four decimals, as the smallest of the paper's are 0.003.


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one line per context, method, gate and requested sparsity: nats per token above dense.

    Trained gates have a second line: the difference to the paper's gate at the same requested sparsity. The paper's
    lines are those of SeerAttention at the contexts of the run, or all of them if the run has none of these
    contexts. Raises MissingRows if the run has no method with a requested sparsity beside dense attention.
    """
    rows = frames.experiments(run, "perplexity", EXPERIMENT, "perplexity")
    sparse = rows[rows.sparsity_requested.notna()]
    # Model by model, since the loss is measured against dense attention in the same model.
    losses = [
        aggregates.perplexities(group, aggregates.dense_rows(run, rows[rows.model == model]))
        for model, group in sparse.groupby("model", sort=False)
    ]
    measured = pd.concat(losses) if losses else sparse.assign(delta=np.nan)
    if not measured.delta.notna().any():
        what = f"methods with a requested sparsity beside dense in the experiment {EXPERIMENT!r}"
        raise MissingRows("perplexity", what, f"perplexity PRESET {EXPERIMENT}", run.folder)
    without_dense = (measured.status == "measured") & measured.delta.isna()
    measured.loc[without_dense, ["status", "reason"]] = "missing", "no dense rows"
    measured = measured.assign(metric=LOSS, value=measured.delta, low=measured.delta_low, high=measured.delta_high)
    measured = measured.drop(columns=aggregates.DELTAS)
    parts = pd.concat([measured, _against(sparse)]).assign(unit="nats", label=str(labels.label(run, rows)))
    frame = frames.tidy(_printed(paper, rows.context), parts)
    frame["place"] = frame.metric.map(METRICS.index)
    frame = table_format.ordered(frame, "place", "sparsity_requested")
    texts = list(dict.fromkeys(frame.corpus))
    frame["text"] = frame.corpus.map(texts.index)
    frame = frame.sort_values(["context", "text"], kind="stable", ignore_index=True)
    return frame.drop(columns=["place", "text"])


def _printed(paper: pd.DataFrame, contexts: pd.Series) -> pd.DataFrame:
    """Return the losses of SeerAttention that follow from the perplexities of the paper's Table 1."""
    printed = paper_numbers.printed(paper, "table1")
    printed = printed.assign(value=paper_numbers.losses(printed))
    seer = printed[printed.method == "seer"]
    at_these = seer[seer.context.isin(contexts)]
    seer = at_these if len(at_these) else seer
    return seer.assign(gate=PAPER_GATE, metric=LOSS, unit="nats")


def _against(sparse: pd.DataFrame) -> pd.DataFrame:
    """Return the difference of each trained gate to the paper's gate in the same model, paired by document.

    Gates with the same requested sparsity skip equally many blocks, since all of them follow the same rule.
    """
    seer = sparse[(sparse.method == "seer") & (sparse.status == "measured")]
    base = seer[gate_sets.is_set(seer.gate, PAPER_GATE)]
    base = base[base.gate.isin(base.groupby("model").gate.first())]
    others = seer[~seer.gate.isin(base.gate) & ~gate_sets.is_set(seer.gate, UNTRAINED)]
    setting = [*PLACE, "sparsity_requested"]
    nll = {key: group.set_index("document").nll for key, group in base.groupby(setting)}
    lines = []
    for (gate, *key), cell in others.groupby(["gate", *setting], sort=False):
        if tuple(key) not in nll:
            continue
        line: dict[str, Any] = dict(zip(setting, key)) | {"method": "seer", "gate": gate, "metric": AGAINST}
        difference = bootstrap.paired_delta(nll[tuple(key)], cell.set_index("document").nll)
        line |= dict(zip(aggregates.NUMBERS, difference)) | {"source": "measured", "status": "measured"}
        lines.append(line | {"count": len(cell), "sparsity_realised": cell.sparsity_realised.mean()})
    return pd.DataFrame(lines)


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per context, method and metric, with one column per requested sparsity."""
    frame = frame.assign(
        length=frame.context.map(style.size), method_name=frame.apply(table_format.method_name, axis=1)
    )
    lines = {"length": "context", "source": "source", "model": "model", "corpus": "corpus"}
    lines |= {"method_name": "method", "metric": "quantity"}
    return table_format.grid(frame, lines, "sparsity_requested", _cell, lambda sparsity: f"{sparsity:.2f}")


def chart(frame: pd.DataFrame) -> charts.Chart:
    """Return the loss over the share of skipped blocks, the longest context first.

    Each panel also has the paper's losses at the nearest context of its own, at the requested sparsity, since the
    paper prints no realised one.
    """
    losses = frame[frame.metric == LOSS].sort_values("context", ascending=False, kind="stable")
    measured, printed = losses[losses.source == "measured"], losses[losses.source == "paper"]
    parts = [charts.points(measured, panel=_panel(measured))]
    for (panel, context), _ in measured.groupby([_panel(measured), "context"], sort=False):
        nearest = min(printed.context.unique(), key=lambda other: abs(other - context), default=None)
        paper = printed[printed.context == nearest]
        names = [
            f"{table_format.method_name(entry)}: paper, {style.size(entry.context)}"
            for _, entry in paper.iterrows()
        ]
        parts.append(charts.points(paper, panel=panel, x=paper.sparsity_requested, name=names))
    how = "Right skips more and down is a smaller loss."
    return charts.Chart(charts.SKIPPED, charts.LOSS, how, pd.concat(parts, ignore_index=True))


def _panel(losses: pd.DataFrame) -> pd.Series:
    return losses.context.map(style.size) + ", " + losses.corpus


def _cell(entry: pd.Series) -> str:
    sign, digits = "+" if entry.metric == AGAINST else "", 4 if abs(entry.value) < SMALL else 3
    estimate, low, high = (f"{entry[name]:{sign}.{digits}f}" for name in aggregates.NUMBERS)
    between = "" if pd.isna(entry.low) else f" [{low}, {high}]"
    return estimate + between + table_format.in_brackets(entry.sparsity_realised)


def remarks(frame: pd.DataFrame) -> list[str]:
    """Return how to read the cells, and how exactly the paper's losses are known."""
    notes = [
        "Loss: nats per token above dense attention on the same documents [95% paired bootstrap interval] "
        "(realised sparsity). 0.01 nats are 1% of perplexity. Columns are requested sparsities.",
    ]
    if (frame.metric == AGAINST).any():
        notes.append(
            f"Minus {PAPER_GATE}: the loss of a gate minus that of the gate set {PAPER_GATE} at the same requested "
            f"sparsity, on the same documents. Negative numbers mean a lower loss than {PAPER_GATE}'s."
        )
    if (frame.source == "paper").any():
        notes.append(
            "Paper: the logarithm of its perplexity over that of its dense model (Table 1). It prints two "
            "decimals, so its losses are known to 0.001 nats. It prints no realised sparsity and no interval."
        )
    return notes
