"""Aggregates: one line per cell, with its interval, from raw rows.

Perplexities have intervals over documents, timings and speed-ups over rounds. Artefacts call these functions in
`collect`. Nothing here knows how a number is shown.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from seerbench.artefacts import colors
from seerbench.methods.block_sparse_kernels import DENSE
from seerbench.rows import bootstrap, requests
from seerbench.rows.equal_sparsity import nll_at
from seerbench.rows.schema import DISTURBED, RANDOM, RANDOM_WEIGHTS
from seerbench.rows.store import Run

NUMBERS = ["value", "low", "high"]
DELTAS = ["delta", "delta_low", "delta_high"]
# The columns of every aggregate that are neither its key nor its numbers.
OUTCOME = ["source", "metric", "unit", "count", "sparsity_realised", "status", "reason"]
# The key of a timing, and the key of a perplexity.
TIMING = ["model", "method", "inputs_kind", "implementation", "context", "sparsity_requested", "stage", "base"]
CELL = ["model", "corpus", "context", "method", "gate", "recipe", "sparsity_requested", "threshold"]
# The columns of a perplexity's rows, one per document, of which it is made.
OF_DOCUMENT = ["document", "nll", "sparsity_realised", "status", "reason"]
# The paper's baseline is FlashAttention-2. Where that does not run (a CPU), it is torch's own dense kernel.
REFERENCES = ("fa2", "dense")
# Methods that nobody would run and that do not compete: blocks chosen by the gate's target, known exactly, and at
# random. Figures 5 and 6 leave them to the table `methods`.
ORACLES = ("oracle", "oracle-mass")
CONTROLS = (*ORACLES, "random")
# A dense method chooses no blocks, so its attend and its total are the same measurement.
DENSE_STAGES = ("attend", "total", "forward", "ttft")
# Share of blocks below which a method at its own setting is said to skip nothing on random inputs.
NEXT_TO_NOTHING = 0.25


def perplexities(rows: pd.DataFrame, dense: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return one line per cell: perplexity (value, low, high) and loss over dense in nats per token (delta).

    dense: the rows to compare with, matched by context, corpus and document. By default they are the rows whose
    method is `dense`. The delta is empty where dense did not read the documents of a cell.
    """
    dense = rows[rows.method == "dense"] if dense is None else dense
    dense = dense[dense.status == "measured"].drop_duplicates(["corpus", "context", "document"])
    dense_nll = {key: group.set_index("document").nll for key, group in dense.groupby(["corpus", "context"])}
    lines = []
    # Without the other columns, since each cell gets a copy of all of them.
    for key, cell in rows[[*CELL, *OF_DOCUMENT]].groupby(CELL, dropna=False, sort=False):
        line: dict[str, Any] = dict(zip(CELL, key))
        line |= {"source": "measured", "metric": "perplexity", "unit": "perplexity"}
        measured = (cell.status == "measured").to_numpy()
        done, lost = (cell, cell[:0]) if measured.all() else (cell[measured], cell[~measured])
        line |= {"count": len(done), "sparsity_realised": done.sparsity_realised.mean()}
        line["status"] = "measured" if len(done) else lost.status.iloc[0]
        line["reason"] = _reason_of_loss(lost, len(cell)) if len(lost) else None
        if len(done):
            nll = pd.Series(done.nll.to_numpy(), done.document.to_numpy())
            line |= dict(zip(NUMBERS, bootstrap.perplexity(nll)))
            base = dense_nll.get((line["corpus"], line["context"]))
            if base is not None and nll.index.intersection(base.index).size:
                line |= dict(zip(DELTAS, bootstrap.paired_delta(base, nll)))
        lines.append(line)
    return _frame(lines, [*CELL, *OUTCOME, *NUMBERS, *DELTAS])


def loss_at(rows: pd.DataFrame, dense: pd.DataFrame, sparsity: float) -> bootstrap.Interval | None:
    """Return the loss of one method at a realised sparsity: nats per token above dense, with its interval.

    Args:
        rows: perplexity rows of one method (and one gate) in one model, text and context, at any sparsities.
        dense: rows of dense attention on the same documents.
        sparsity: the realised sparsity.

    Returns:
        None outside the measured range of the method (rows/equal_sparsity.py), and without dense rows.
    """
    dense = dense[(dense.method == "dense") & (dense.status == "measured")]
    nll, base = nll_at(rows, sparsity), dense.drop_duplicates("document").set_index("document").nll
    return None if nll is None or base.empty else bootstrap.paired_delta(base, nll)


def _reason_of_loss(lost: pd.DataFrame, documents: int) -> str:
    """Return why documents of a cell have no number, and how many they are unless it is all of them."""
    reason = lost.reason.dropna().iloc[0] if lost.reason.notna().any() else "no reason given"
    return str(reason) if len(lost) == documents else f"{len(lost)} of {documents} documents: {reason}"


def dense_rows(run: Run, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the dense rows to compare `rows` with.

    They are among `rows`, or else those of the whole run that have the same models and corpora.
    """
    own = rows[rows.method == "dense"]
    if len(own):
        return own
    every = requests.rows(run, "perplexity")
    same = every.model.isin(rows.model.unique()) & every.corpus.isin(rows.corpus.unique())
    return every[(every.method == "dense") & same]


def latencies(cells: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Return one line per method, cell and stage: the median in ms (value) and the quartiles (low, high).

    A cell that was not measured has one line, without a stage, with its reason.
    """
    rounds = _rounds(samples)
    lines = []
    for cell in cells.to_dict("records"):
        stages = rounds.get((cell["run_id"], cell["cell"], cell["method"]), {})
        line = _line(cell) | {"metric": "latency", "unit": "ms"}
        if not stages:
            lines.append(line)
        for stage, ms in stages.items():
            numbers = dict(zip(NUMBERS, bootstrap.median_iqr(ms)))
            lines.append(line | numbers | {"stage": stage, "count": len(ms)})
    return _frame(lines, [*TIMING, *OUTCOME, *NUMBERS])


def dense_latencies(cells: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Return one line per dense method and context: median ms and quartiles over the rounds of all its cells."""
    lines = []
    dense = cells[cells.apply(is_dense, axis=1)]
    for _, group in dense.groupby(["method", "context"], sort=False):
        measured = group[group.status == "measured"]
        cell = (measured if len(measured) else group).iloc[0].to_dict()
        line = _line(cell) | {"metric": "latency", "unit": "ms"}
        ms = samples[samples.cell.isin(measured.cell) & (samples.method == cell["method"])]
        stages = {stage: part.ms for stage, part in ms.groupby("stage", sort=False)}
        if stages:
            stage = next(name for name in DENSE_STAGES if name in stages)
            numbers = dict(zip(NUMBERS, bootstrap.median_iqr(stages[stage])))
            line |= numbers | {"stage": stage, "count": len(stages[stage])}
        lines.append(line)
    return _frame(lines, [*TIMING, *OUTCOME, *NUMBERS])


def speedups(cells: pd.DataFrame, samples: pd.DataFrame, stage: str, against: str = "reference") -> pd.DataFrame:
    """Return one line per method and cell: dense time / method time at `stage`, paired by round (value, low, high).

    against: "reference" (FlashAttention-2 as in the paper, torch's dense kernel where that does not run) or
    "fastest" (the dense kernel with the lowest median in that cell). The column `base` names the dense method.
    """
    rounds = _rounds(samples)
    lines = []
    groups: dict[tuple, list[dict[Hashable, Any]]] = {}
    for cell in cells.to_dict("records"):
        groups.setdefault((cell["run_id"], cell["cell"]), []).append(cell)
    for group in groups.values():
        stages_of = {
            cell["method"]: rounds.get((cell["run_id"], cell["cell"], cell["method"]), {}) for cell in group
        }
        base = dense_base(group, stages_of, stage, against)
        for cell in group:
            method, ms = cell["method"], stages_of[cell["method"]].get(stage)
            line = _line(cell) | {"metric": "speedup", "unit": "x", "stage": stage, "base": base}
            if is_dense(cell) and ms is None:
                ms = dense_time(stages_of[method], stage)
            if cell["status"] != "measured":
                lines.append(line)
            elif ms is None:
                continue  # The method has no such stage.
            elif base is None:
                lines.append(line | _without_base(group))
            elif method != base:
                numbers = bootstrap.paired_speedup(dense_time(stages_of[base], stage), ms)
                lines.append(line | dict(zip(NUMBERS, numbers)) | {"count": len(ms)})
    return _frame(lines, [*TIMING, *OUTCOME, *NUMBERS])


def _without_base(methods: Sequence[Mapping[Hashable, Any]]) -> dict[str, str]:
    """Return status and reason of a speed-up for which the cell has no dense timing."""
    disturbed = [one["reason"] for one in methods if is_dense(one) and one["status"] == DISTURBED]
    if disturbed:
        return {"status": DISTURBED, "reason": f"the dense timing: {disturbed[0]}"}
    return {"status": "missing", "reason": "no dense timing in the same cell"}


def dense_base(
    cell: Sequence[Mapping[Hashable, Any]], stages_of: dict[str, dict], stage: str, against: str
) -> str | None:
    """Return the dense method of one cell that the others are compared with, or None if none was timed there.

    Args:
        cell: the rows of the cell, one per method.
        stages_of: method -> stage -> ms by round.
        stage: the stage that is compared.
        against: as for `speedups`.
    """
    methods = [one["method"] for one in cell if is_dense(one)]
    times = {method: dense_time(stages_of[method], stage) for method in methods}
    medians = {method: ms.median() for method, ms in times.items() if ms is not None}
    if against == "fastest":
        return min(medians, key=lambda method: medians[method], default=None)
    return next((method for method in REFERENCES if method in medians), None)


def is_control(methods: pd.Series) -> pd.Series:
    """Return, for each name in a column `method`, whether it is one of CONTROLS or a variant of one."""
    return methods.map(colors.base_of).isin(CONTROLS)


def is_dense(cell: Mapping[Hashable, Any] | pd.Series) -> bool:
    """Return whether the method of a cell is dense by nature, and not a sparse one that skipped nothing."""
    return cell["method"] in REFERENCES or cell["mask"] == "dense"


def random_input_remarks(frame: pd.DataFrame) -> list[str]:
    """Return a remark on methods that skip next to nothing at their own settings because their inputs are random.

    frame: lines of a frame (frames.COLUMNS), of which those of measured timings count.
    """
    is_random = frame.inputs_kind.isin([RANDOM, RANDOM_WEIGHTS]) & frame.sparsity_requested.isna()
    rows = frame[is_random & (frame.sparsity_realised < NEXT_TO_NOTHING) & ~frame.method.isin(DENSE)]
    if rows.empty:
        return []
    most = rows.groupby("method").sparsity_realised.max()
    found = ", ".join(f"{colors.display(name)} ({most[name]:.1%})" for name in sorted(most.index, key=colors.rank))
    return [
        f"On random inputs these methods find nothing to skip at their own settings: {found} of the blocks. Their "
        "times say what it costs them to choose, and nothing of their speed-up on text."
    ]


def dense_time(stages: Mapping[str, pd.Series], stage: str) -> pd.Series | None:
    """Return the ms by round of a dense method at `stage`, or at the stage that it was timed at instead."""
    return next((stages[name] for name in (stage, *DENSE_STAGES) if name in stages), None)


def _rounds(samples: pd.DataFrame) -> dict[tuple, dict[str, pd.Series]]:
    """Return (run_id, cell, method) -> stage -> ms by round."""
    rounds: dict[tuple, dict[str, pd.Series]] = {}
    by_round = samples.set_index("round").groupby(["run_id", "cell", "method", "stage"], sort=False).ms
    for (*key, stage), ms in by_round:
        rounds.setdefault(tuple(key), {})[stage] = ms
    return rounds


def cell_lines(cells: pd.DataFrame) -> pd.DataFrame:
    """Return one line per cell and method that holds what is known of the cell, without a number."""
    return _frame([_line(cell) for cell in cells.to_dict("records")], [*TIMING, *OUTCOME, *NUMBERS])


def longest(cells: pd.DataFrame) -> float:
    """Return the longest context at which a sparse method was measured, or else the longest of all."""
    sparse = cells[(cells.status == "measured") & cells.sparsity_requested.notna()]
    return (sparse if len(sparse) else cells).context.max()


def _line(cell: Mapping[Hashable, Any]) -> dict[str, Any]:
    """Return the columns of a cell that every aggregate of it shows."""
    names = ("method", "implementation", "context", "sparsity_requested", "sparsity_realised", "status", "reason")
    line = {
        "source": "measured",
        "model": cell["inputs"],
        "inputs_kind": cell["inputs_kind"],
        **{name: cell[name] for name in names},
    }
    if is_dense(cell) and cell["status"] == "measured":
        line["sparsity_realised"] = 0.0
    return line


def _frame(lines: list[dict], columns: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame(lines, columns=columns)
    numbers = [name for name in columns if name in (*NUMBERS, *DELTAS)]
    return frame.astype(dict.fromkeys(numbers, float))
