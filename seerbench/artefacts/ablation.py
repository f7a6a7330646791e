"""Table beyond the paper: what a gate loses by its parts and by how blocks are selected, beside oracles.

The parts are block size, recipe, poolings and training text. Blocks are selected by the top-k rule or by one
threshold per layer, with or without forced sink and diagonal. The table has the loss of each method of the
experiment `gates` on the same documents, the difference to the paper's gate at equal realised sparsity, and the
score on look-ups where the run has tasks with that method.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from seerbench.artefacts import aggregates, colors, frames, gate_sets, labels, style, table_format
from seerbench.rows import bootstrap, requests
from seerbench.rows.equal_sparsity import nll_at, realised
from seerbench.rows.gate_ref import PAPER_GATE
from seerbench.rows.store import Run

# The metrics of the frame, in the order of their columns.
LOSS, AGAINST, LOOKUPS = "loss", "minus the paper's gate", "correct"
METRICS = (LOSS, AGAINST, LOOKUPS)
CELL = ["model", "corpus", "method", "gate", "sparsity_requested", "threshold"]
# How answers to look-ups were made (schema.py): before version 4 of the schema the right answer was given.
GENERATED, GIVEN = "generated", "given"


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one line per method, setting and metric.

    The metrics are the loss (nats per token above dense), its difference to the paper's gate at equal realised
    sparsity (nats per token), and the share of right look-ups.
    """
    rows = frames.experiment(run, "perplexity", "gates", "perplexity")
    losses = aggregates.perplexities(rows, aggregates.dense_rows(run, rows)).assign(metric=LOSS)
    losses = losses.assign(value=losses.delta, low=losses.delta_low, high=losses.delta_high, unit="nats")
    losses = losses[losses.method != "dense"]
    label = str(labels.label(run, rows))
    parts = [losses.assign(label=label), _against(run, rows).assign(label=label)]
    tasks = requests.rows(run, "tasks")
    tasks = tasks[(tasks.experiment == "retrieval") & tasks.model.isin(losses.model)]
    tasks = tasks[_names(tasks).isin(_names(losses))]
    parts += [] if tasks.empty else [_lookups(tasks).assign(label=str(labels.label(run, tasks)))]
    frame = frames.tidy(*parts, extra=["protocol"])
    frame["place"] = frame.metric.map(METRICS.index)
    frame = table_format.ordered(frame, "place", "sparsity_requested", "threshold")
    return frame.drop(columns="place")


def _names(rows: pd.DataFrame) -> pd.Series:
    """Return method and gate of each row as one text."""
    return rows.method + " " + rows.gate.fillna("")


def _against(run: Run, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the difference of each setting to the paper's gate at the setting's realised sparsity.

    The paper's gate has the top-k rule in every row. Its measured sparsities are those of the experiments `gates`
    and `contexts`. A setting beyond their range has no line.
    """
    every = requests.rows(run, "perplexity")
    every = every[every.experiment.isin(["gates", "contexts"]) & every.model.isin(rows.model)]
    base = every[(every.method == "seer") & gate_sets.is_set(every.gate, PAPER_GATE)]
    base = base.sort_values("experiment", kind="stable")
    base = base[base.gate.isin(base.gate.head(1))]  # Several gate jobs may have this set: the first of `contexts`.
    others = rows[(rows.status == "measured") & (rows.method != "dense")]
    others = others[~_names(others).isin(_names(base))]
    lines = []
    for key, cell in others.groupby([*CELL, "context"], dropna=False, sort=False):
        line = dict(zip([*CELL, "context"], key))
        same = (base[name] == line[name] for name in ("model", "corpus", "context"))
        nll = nll_at(base[pd.concat(list(same), axis=1).all(axis=1)], realised(cell))
        if nll is not None:
            difference = bootstrap.paired_delta(nll, cell.set_index("document").nll)
            line |= {"source": "measured", "status": "measured", "metric": AGAINST, "unit": "nats"}
            line |= {"count": len(cell), "sparsity_realised": realised(cell)}
            lines.append(line | dict(zip(aggregates.NUMBERS, difference)))
    return pd.DataFrame(lines)


def _lookups(tasks: pd.DataFrame) -> pd.DataFrame:
    """Return the share of right look-ups per setting, as unweighted mean over tasks and contexts."""
    lines = []
    for key, cell in tasks.groupby(CELL, dropna=False, sort=False):
        answered = cell[cell.correct.notna()]
        if answered.empty:
            continue
        counts = [(int(part.correct.sum()), len(part)) for _, part in answered.groupby(["task", "context"])]
        line: dict[str, Any] = dict(zip(CELL, key)) | dict(
            zip(aggregates.NUMBERS, bootstrap.mean_proportion(counts))
        )
        line |= {"source": "measured", "status": "measured", "metric": LOOKUPS, "unit": "share"}
        line |= {"protocol": GENERATED if answered.prediction.notna().any() else GIVEN}
        lines.append(line | {"count": len(answered), "sparsity_realised": answered.sparsity_realised.mean()})
    return pd.DataFrame(lines)


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per method, with one column per metric and requested sparsity."""
    frame = frame.assign(
        method_name=frame.apply(table_format.method_name, axis=1),
        column=frame.metric + ", " + frame.apply(table_format.requested, axis=1),
        place=frame.metric.map(METRICS.index),
    )
    columns = frame.sort_values(["place", "sparsity_requested"], kind="stable").column.unique()
    cells = table_format.grid(frame, {"model": "model", "method_name": "gate"}, "column", _cell)
    return cells[["model", "gate", *columns]]


def _cell(entry: pd.Series) -> str:
    if entry.metric == LOOKUPS:  # in percent, as in Table 2
        numbers = f"{table_format.number(100 * entry.value, 100 * entry.low, 100 * entry.high)}%"
    else:
        numbers = table_format.number(entry.value, entry.low, entry.high, sign=True)
    return numbers + table_format.in_brackets(entry.sparsity_realised)


def remarks(frame: pd.DataFrame) -> list[str]:
    """Return how to read the cells, of which protocol they are, and which oracle loses least."""
    contexts = ", ".join(style.size(context) for context in sorted(frame.context.dropna().unique()))
    base = colors.display("seer")
    return [
        f"Columns: the quantity and the requested sparsity. {LOSS} at {contexts}: nats per token above dense "
        f"on the same documents. {AGAINST}: minus the loss of {base} with the gate set {PAPER_GATE} at the same "
        "realised sparsity, interpolated between its measured ones; negative numbers mean a lower loss. "
        f"{LOOKUPS}: the percentage of look-ups answered correctly, unweighted mean over tasks and contexts. "
        "[95% interval] (realised sparsity).",
        "Protocol: every row of blocks is sparse, except where a name says that the last rows are dense. "
        + answers(frame),
        *_best_oracles(frame),
        "Gates are named by gate job and gate set; the preset says what each is made of. The paper has no such "
        "table.",
    ]


def answers(frame: pd.DataFrame) -> str:
    """Return how the answers of look-ups were made, in a sentence; empty if the frame has none."""
    found = set(frame.protocol.dropna()) if "protocol" in frame else set()
    sentences = {
        GENERATED: "Answers to look-ups are generated with dense attention after the sparse prompt.",
        GIVEN: "Look-ups are scored with the right answer given, in one pass whose answer rows are sparse too.",
    }
    return " ".join(text for name, text in sentences.items() if name in found)


def _best_oracles(frame: pd.DataFrame) -> list[str]:
    """Return which of the measured oracles loses least at each requested sparsity: no bound, the best of a few."""
    losses = frame[(frame.metric == LOSS) & frame.value.notna() & frame.sparsity_requested.notna()]
    oracles = losses[losses.method.map(colors.base_of).isin(aggregates.ORACLES)]
    if oracles.empty:
        return []
    best = oracles.loc[oracles.groupby("sparsity_requested").value.idxmin()]
    named = "; ".join(
        f"{line.sparsity_requested:.0%}: {colors.display(line.method)} ({line.value:+.3f})"
        for line in best.itertuples()
    )
    return [f"Best oracle measured: {named}. None of them bounds what another choice of blocks can reach."]
