"""Where an artefact's numbers come from: the paper's file and a run's rows, each with its label.

Every artefact has one frame, a line a number. `source` is "paper" or "measured"; `status` is "printed"
for the paper's, and for measured ones that of the rows (measured, refused, failed, out_of_memory) or
"missing"; an empty number has a `reason`; `label` says whose number it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from seerbench.errors import MissingRows, ResultsError, UnknownCommit
from seerbench.paths import ROOT
from seerbench.rows.source_digest import changed_since
from seerbench.rows.store import Run

PAPER = "SeerAttention, arXiv 2410.13276 v1"
PAPER_GPU = "GPU not named there (its v4: one A100)"
PAPER_COLUMNS = (
    "artefact",
    "model",
    "dataset",
    "method",
    "recipe",
    "context",
    "sparsity",
    "metric",
    "value",
    "unit",
    "note",
)
# The columns of a frame, in this order; each artefact has those that it needs.
COLUMNS = (
    "panel",
    "source",
    "series",
    "method",
    "gate",
    "recipe",
    "model",
    "corpus",
    "task",
    "bucket",
    "context",
    "sparsity_requested",
    "sparsity_realised",
    "implementation",
    "stage",
    "base",
    "metric",
    "x",
    "y",
    "value",
    "low",
    "high",
    "unit",
    "delta",
    "delta_low",
    "delta_high",
    "count",  # what the interval is over: documents, rounds, examples
    "status",
    "reason",
    "label",
)
TEXTS = {"panel", "source", "series", "method", "gate", "recipe", "model", "corpus", "task", "bucket"}
TEXTS |= {
    "document",
    "definition",
    "implementation",
    "stage",
    "base",
    "metric",
    "unit",
    "status",
    "reason",
    "label",
}


def paper_values(folder: Path | str = ROOT / "results" / "paper") -> pd.DataFrame:
    """The paper's numbers: `<folder>/values.csv`, checked. `context` is text (Table 2 has buckets)."""
    path = Path(folder) / "values.csv"
    if not path.exists():
        raise ResultsError(f"{path} is missing; it is part of the repository (git checkout results/paper)")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    missing = [name for name in PAPER_COLUMNS if name not in frame]
    unknown = [name for name in frame if name not in PAPER_COLUMNS]
    if missing or unknown:
        raise ResultsError(f"{path}: missing columns {missing}, unknown columns {unknown}")
    for name in ("sparsity", "value"):
        numbers = pd.to_numeric(frame[name].where(frame[name] != "", None), errors="coerce")
        wrong = frame.index[numbers.isna() & (frame[name] != "")]
        if len(wrong):
            said = frame.loc[wrong[0], name]
            raise ResultsError(f"{path}, line {wrong[0] + 2}: {name} is {said!r}, not a number")
        frame[name] = numbers
    silent = frame.index[frame.value.isna() & (frame.note == "")]
    if len(silent):
        raise ResultsError(f"{path}, line {silent[0] + 2}: an empty value needs a note that says why")
    return frame


def printed(paper: pd.DataFrame, artefact: str) -> pd.DataFrame:
    """The paper's rows of one artefact, in the columns of a frame."""
    rows = paper[paper.artefact == artefact]
    # MInference takes no sparsity: what the paper gives for it is what its patterns came to.
    own = rows.method == "minference"
    models = ", ".join(dict.fromkeys(name for name in [*rows.model, *rows.dataset] if name))
    frame = pd.DataFrame(
        {
            "source": "paper",
            "method": rows.method,
            "recipe": rows.recipe,
            "model": rows.model,
            "corpus": rows.dataset,
            "context": pd.to_numeric(rows.context, errors="coerce"),
            "bucket": rows.context.where(~rows.context.str.isdigit(), None),
            "sparsity_requested": rows.sparsity.where(~own),
            "sparsity_realised": rows.sparsity.where(own),
            "metric": rows.metric,
            "value": rows.value,
            "unit": rows.unit,
            "status": rows.value.isna().map({True: "out_of_memory", False: "printed"}),
            "reason": rows.note.where(rows.value.isna(), None).map(
                lambda note: f"the paper prints {note}" if isinstance(note, str) else None
            ),
        }
    )
    return frame.assign(label=f"paper: {PAPER}{f', {models}' if models else ''}; {PAPER_GPU}")


def experiments(run: Run, table: str, name: str, step: str) -> pd.DataFrame:
    """The same for an experiment that has parts: `yarn` and, of another corpus, `yarn-math`."""
    every = run.table(table)
    parts = [part for part in every.experiment.unique() if part == name or part.startswith(f"{name}-")]
    return pd.concat([experiment(run, table, part, step) for part in parts or [name]], ignore_index=True)


def experiment(run: Run, table: str, name: str, step: str) -> pd.DataFrame:
    """A run's rows of one experiment; ResultsError with the step that measures them if there are none.

    A fresh run keeps an experiment in a file of its own, a published one all of a table in one file.
    """
    rows = run.table(table, name)
    if rows.empty:
        rows = run.table(table)
        if "experiment" in rows:
            rows = rows[rows.experiment == name]
    if rows.empty:
        raise unmeasured(run, table, f"{table} rows of the experiment {name!r}", f"{step} PRESET {name}")
    return rows.reset_index(drop=True)


def timed(run: Run, sweep: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(cells, samples) of one timing sweep; ResultsError if the run has no such cells."""
    cells = run.table("cells")
    cells = cells[cells.sweep == sweep].reset_index(drop=True)
    if cells.empty:
        raise unmeasured(run, "cells", f"cells of the sweep {sweep!r}", f"latency PRESET {sweep} CONTEXT")
    samples = run.table("samples")
    return cells, samples[samples.run_id.isin(cells.run_id.unique())].reset_index(drop=True)


def unmeasured(run: Run, table: str, what: str, step: str) -> MissingRows:
    """Return the error for an artefact whose rows the run lacks; the arguments are those of MissingRows."""
    return MissingRows(table, what, step, run.folder)


def label(run: Run, *rows: pd.DataFrame, timed: bool = False) -> str:
    """Whose numbers the measured ones are: scale, device, date, commit of the runs that `rows` name.

    timed: timings also say when the kernels in this tree are not those that were timed.
    """
    names = {name for part in rows for name in part.run_id.unique()}
    runs = run.table("runs")
    runs = runs[runs.run_id.isin(names)]
    dates = sorted({started[:10] for started in runs.started})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    commits = sorted({_commit(commit, dirty) for commit, dirty in zip(runs.commit, runs.dirty)})
    parts = [*dict.fromkeys(runs.scale), *dict.fromkeys(runs.device), when, ", ".join(commits)]
    if timed:
        parts += _kernels(runs)
    return "measured: " + "; ".join(parts)


def _kernels(runs: pd.DataFrame) -> list[str]:
    """Return a remark where the runs were timed, or may have been, with other kernels than this tree's."""
    unknown = False
    for commit, recorded, dirty in set(zip(runs.commit, runs.source_digest, runs.dirty)):
        try:
            commit = commit if isinstance(commit, str) else None
            if changed_since(commit, recorded, pd.isna(dirty) or bool(dirty)):
                return ["with other kernels than this tree's"]
        except UnknownCommit:
            unknown = True
    return ["perhaps with other kernels than this tree's (the repository here lacks that commit)"] * unknown


def _commit(commit: str | None, dirty: bool | None) -> str:
    if not isinstance(commit, str):
        return "unknown commit"
    # Null: nobody said whether the tree was clean. Not the same as clean.
    return f"commit {commit[:7]}" + {False: "", True: " (dirty)"}.get(dirty, " (unknown whether clean)")


def absent(printed_rows: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """An empty line for each of the paper's methods that the run did not measure at all."""
    methods = [name for name in printed_rows.method.unique() if name not in set(measured.method)]
    places = measured.drop_duplicates([name for name in ("context", "bucket") if name in measured])
    lines = [
        {
            "source": "measured",
            "method": method,
            "model": place.model if "model" in measured else None,
            "context": place.context,
            "bucket": place.bucket if "bucket" in measured else None,
            "metric": place.metric,
            "status": "missing",
            "reason": "not in this run",
            "label": place.label,
        }
        for method in methods
        for place in places.itertuples()
    ]
    return pd.DataFrame(lines)


def tidy(*frames: pd.DataFrame, extra: Sequence[str] = ()) -> pd.DataFrame:
    """The frames below each other, columns in the order of COLUMNS (then `extra`), numbers as floats."""
    # By records: pd.concat guesses other types where one frame's column is empty.
    records = [record for frame in frames for record in frame.to_dict("records")]
    present = {name for frame in frames for name in frame}
    columns = [name for name in (*COLUMNS, *extra) if name in present]
    whole = pd.DataFrame(records, columns=columns)
    for name in columns:
        if name in TEXTS:
            whole[name] = whole[name].astype(object).where(whole[name].notna(), None)
        else:
            whole[name] = pd.to_numeric(whole[name])
    return whole
