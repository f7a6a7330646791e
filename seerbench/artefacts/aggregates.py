"""Rows -> one line a cell with its interval: perplexity over documents, timings and speed-ups over rounds.

Artefacts call these in `collect`; nothing here knows how a number is shown.
"""

from __future__ import annotations

import pandas as pd

from seerbench.rows import bootstrap
from seerbench.rows.store import Run

# What a line says of its cell, then its numbers.
NUMBERS = ["value", "low", "high"]
DELTAS = ["delta", "delta_low", "delta_high"]
OUTCOME = ["source", "metric", "unit", "count", "sparsity_realised", "status", "reason"]
TIMED = ["model", "method", "implementation", "context", "sparsity_requested", "stage", "base"]
CELL = ["model", "corpus", "context", "method", "gate", "recipe", "sparsity_requested"]
# The paper's baseline is FlashAttention-2; where it does not run (a CPU), it is torch's own dense kernel.
REFERENCES = ("fa2", "dense")
# Bounds and no competitors: the best choice and the worst. Figures 5 and 6 leave them to the table `methods`.
BOUNDS = ("oracle", "random")
# A dense method chooses nothing, so that its attend and its total are the same thing.
DENSE_STAGES = ("attend", "total", "forward", "ttft")


def perplexities(rows: pd.DataFrame, dense: pd.DataFrame | None = None) -> pd.DataFrame:
    """A line a cell: perplexity (value, low, high) and delta NLL against dense on the same documents.

    dense: the rows to compare with, matched by context, corpus and document; by default those of
    `rows` whose method is dense. Where dense did not see a cell's documents, its delta is empty.
    """
    dense = rows[rows.method == "dense"] if dense is None else dense
    dense = dense[dense.status == "measured"].drop_duplicates(["corpus", "context", "document"])
    base = {key: group.set_index("document").nll for key, group in dense.groupby(["corpus", "context"])}
    lines = []
    for key, cell in rows.groupby(CELL, dropna=False, sort=False):
        line = dict(zip(CELL, key)) | {"source": "measured", "metric": "perplexity", "unit": "perplexity"}
        done = cell[cell.status == "measured"]
        lost = cell[cell.status != "measured"]
        line |= {"count": len(done), "sparsity_realised": done.sparsity_realised.mean()}
        line["status"] = "measured" if len(done) else lost.status.iloc[0]
        line["reason"] = _lost(lost, len(cell)) if len(lost) else None
        if len(done):
            nll = done.set_index("document").nll
            line |= dict(zip(NUMBERS, bootstrap.perplexity(nll)))
            other = base.get((line["corpus"], line["context"]))
            if other is not None and nll.index.intersection(other.index).size:
                line |= dict(zip(DELTAS, bootstrap.paired_delta(other, nll)))
        lines.append(line)
    return _frame(lines, [*CELL, *OUTCOME, *NUMBERS, *DELTAS])


def _lost(lost: pd.DataFrame, documents: int) -> str:
    reason = lost.reason.dropna().iloc[0] if lost.reason.notna().any() else "no reason given"
    return str(reason) if len(lost) == documents else f"{len(lost)} of {documents} documents: {reason}"


def dense_rows(run: Run, rows: pd.DataFrame) -> pd.DataFrame:
    """The dense rows to compare `rows` with: their own, else the run's for the same models and corpora."""
    own = rows[rows.method == "dense"]
    if len(own):
        return own
    every = run.table("perplexity")
    same = every.model.isin(rows.model.unique()) & every.corpus.isin(rows.corpus.unique())
    return every[(every.method == "dense") & same]


def latencies(cells: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """A line a method, cell and stage: median ms (value) with its quartiles (low, high).

    A cell that was not measured keeps one line, without a stage, with its reason.
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
    return _frame(lines, [*TIMED, *OUTCOME, *NUMBERS])


def dense_latencies(cells: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """A line a dense method and context: its median over the rounds of all cells, which all have it."""
    lines = []
    dense = cells[cells.apply(is_dense, axis=1)]
    for _, group in dense.groupby(["method", "context"], sort=False):
        known = group[group.status == "measured"]
        cell = (known if len(known) else group).iloc[0].to_dict()
        line = _line(cell) | {"metric": "latency", "unit": "ms"}
        ms = samples[samples.cell.isin(known.cell) & (samples.method == cell["method"])]
        stages = {stage: part.ms for stage, part in ms.groupby("stage", sort=False)}
        if stages:
            stage = next(name for name in DENSE_STAGES if name in stages)
            numbers = dict(zip(NUMBERS, bootstrap.median_iqr(stages[stage])))
            line |= numbers | {"stage": stage, "count": len(stages[stage])}
        lines.append(line)
    return _frame(lines, [*TIMED, *OUTCOME, *NUMBERS])


def speedups(cells: pd.DataFrame, samples: pd.DataFrame, stage: str, against: str = "reference") -> pd.DataFrame:
    """A line a method and cell: dense / method at `stage`, paired by round (value, low, high).

    against: "reference" (FlashAttention-2 as in the paper, torch's dense kernel where that does not
    run) or "fastest" (the dense kernel with the lowest median in that cell). `base` names which.
    """
    rounds = _rounds(samples)
    lines = []
    for _, group in cells.groupby(["run_id", "cell"], sort=False):
        timed = {
            cell["method"]: rounds.get((cell["run_id"], cell["cell"], cell["method"]), {})
            for cell in group.to_dict("records")
        }
        base = dense_base(group, timed, stage, against)
        for cell in group.to_dict("records"):
            method, ms = cell["method"], timed[cell["method"]].get(stage)
            line = _line(cell) | {"metric": "speedup", "unit": "x", "stage": stage, "base": base}
            if is_dense(cell) and ms is None:
                ms = _at(timed[method], stage)
            if cell["status"] != "measured":
                lines.append(line)
            elif ms is None:
                continue  # this method has no such stage: a dense one does not plan
            elif base is None:
                lines.append(line | {"status": "missing", "reason": "no dense timing in the same cell"})
            elif method != base:
                numbers = bootstrap.paired_speedup(_at(timed[base], stage), ms)
                lines.append(line | dict(zip(NUMBERS, numbers)) | {"count": len(ms)})
    return _frame(lines, [*TIMED, *OUTCOME, *NUMBERS])


def dense_base(cells: pd.DataFrame, timed: dict[str, dict], stage: str, against: str) -> str | None:
    """Which dense method of one cell others are compared with; None if none was timed there."""
    dense = [cell["method"] for cell in cells.to_dict("records") if is_dense(cell)]
    dense = [method for method in dense if _at(timed[method], stage) is not None]
    if against == "fastest":
        return min(dense, key=lambda method: _at(timed[method], stage).median(), default=None)
    return next((method for method in REFERENCES if method in dense), None)


def is_dense(cell: dict) -> bool:
    """Whether a cell's method is dense by nature, and not a sparse one that found nothing to skip."""
    return cell["method"] in REFERENCES or cell["mask"] == "dense"


def _at(stages: dict[str, pd.Series], stage: str) -> pd.Series | None:
    return next((stages[name] for name in (stage, *DENSE_STAGES) if name in stages), None)


def _rounds(samples: pd.DataFrame) -> dict[tuple, dict[str, pd.Series]]:
    """(run_id, cell, method) -> stage -> ms by round."""
    found: dict[tuple, dict[str, pd.Series]] = {}
    for (*key, stage), group in samples.groupby(["run_id", "cell", "method", "stage"], sort=False):
        found.setdefault(tuple(key), {})[stage] = group.set_index("round").ms
    return found


def cell_lines(cells: pd.DataFrame) -> pd.DataFrame:
    """A line a cell and method without a number: what is known of the cell itself."""
    return _frame([_line(cell) for cell in cells.to_dict("records")], [*TIMED, *OUTCOME, *NUMBERS])


def longest(cells: pd.DataFrame) -> float:
    """The largest context at which anything sparse was measured; the largest at all if nothing was."""
    sparse = cells[(cells.status == "measured") & cells.sparsity_requested.notna()]
    return (sparse if len(sparse) else cells).context.max()


def _line(cell: dict) -> dict:
    kept = ("method", "implementation", "context", "sparsity_requested", "sparsity_realised", "status", "reason")
    line = {"source": "measured", "model": cell["inputs"], **{name: cell[name] for name in kept}}
    if is_dense(cell) and cell["status"] == "measured":
        line["sparsity_realised"] = 0.0
    return line


def _frame(lines: list[dict], columns: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame(lines, columns=columns)
    numbers = [name for name in columns if name in (*NUMBERS, *DELTAS)]
    return frame.astype(dict.fromkeys(numbers, float))
