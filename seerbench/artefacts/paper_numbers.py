"""The papers' own numbers: those of their tables (results/paper) and the few that code needs by name.

`values.csv` has SeerAttention's, which this project reproduces, `values-r.csv` those of SeerAttention-R.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from seerbench import paths
from seerbench.errors import ResultsError

TITLE = "SeerAttention, arXiv 2410.13276 v1"
GPU = "GPU not named (version 4 of the paper: one A100)"
BLOCK = 64  # The paper's kernels use blocks of 64 by 64.
BEST_POOLING = "Qavg_Kmaxmin"  # Figure 10: average of the queries, maximum and minimum of the keys.
TABLE_1_COMPARED = (8192, 16384, 32768, 65536)  # Claims C6 to C8 are about these columns of Table 1,
TABLE_1_LAST = 131072  # and C9 is about the one after them.
TABLE_1_LOWEST = 0.4  # the lowest sparsity of SeerAttention there
LONGBENCH_BUCKETS = ("0-4k", "4-8k", "8k+")  # the columns of Table 2
TABLE_3_CONTEXT = 32768
TABLE_4_CONTEXTS = (8192, 16384, 32768, 65536, 131072)
TRAINING_KERNEL_CONTEXTS = (1024, 65536)  # Figure 8 goes from 1k to 64k.
LARGEST_GATE_SHARE = 0.03  # C11: "1-3% at 32k", of the time of SeerAttention.

COLUMNS = (
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


COLUMNS_R = ("source", "model", "task", "budget", "value", "unit", "note")


def paper_values(folder: Path | str = paths.PAPER) -> pd.DataFrame:
    """Return the rows of `<folder>/values.csv`, checked.

    The column `context` is text, since Table 2 has length buckets. Raises ResultsError, which names the line, for a
    missing file, wrong columns, a value that is not a number, or an empty value without a note.
    """
    path = Path(folder) / "values.csv"
    frame = _numbers(path, COLUMNS, ("sparsity", "value"))
    unexplained = frame.index[frame.value.isna() & (frame.note == "")]
    if len(unexplained):
        raise ResultsError(f"{path}, line {unexplained[0] + 2}: an empty value needs a note that says why")
    return frame


def paper_values_r(folder: Path | str = paths.PAPER) -> pd.DataFrame:
    """Return the rows of `<folder>/values-r.csv`, checked likewise. An empty budget is dense decoding."""
    return _numbers(Path(folder) / "values-r.csv", COLUMNS_R, ("budget", "value"))


def _numbers(path: Path, columns: Sequence[str], numeric: Sequence[str]) -> pd.DataFrame:
    """Return a file of numbers with these columns, of which some are numbers or empty, and the others text."""
    if not path.exists():
        raise ResultsError(f"{path} is missing; it is part of the repository and of the wheel")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    missing = [name for name in columns if name not in frame]
    unknown = [name for name in frame if name not in columns]
    if missing or unknown:
        raise ResultsError(f"{path}: missing columns {missing}, unknown columns {unknown}")
    for name in numeric:
        numbers = pd.to_numeric(frame[name].where(frame[name] != "", None), errors="coerce")
        wrong = frame.index[numbers.isna() & (frame[name] != "")]
        if len(wrong):
            text = frame.loc[wrong[0], name]
            raise ResultsError(f"{path}, line {wrong[0] + 2}: {name} is {text!r}, not a number")
        frame[name] = numbers
    return frame


def losses(printed: pd.DataFrame) -> pd.Series:
    """Return nats per token over the dense model of the same context, from the perplexities of Table 1."""
    dense = printed[printed.method == "dense"].set_index("context").value
    return np.log(printed.value / printed.context.map(dense))


def printed(paper: pd.DataFrame, artefact: str) -> pd.DataFrame:
    """Return the paper's numbers of one artefact in the columns of a frame (frames.COLUMNS)."""
    rows = paper[paper.artefact == artefact]
    # MInference has no sparsity setting: the paper gives the sparsity that its patterns realised.
    realised = rows.method == "minference"
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
            "sparsity_requested": rows.sparsity.where(~realised),
            "sparsity_realised": rows.sparsity.where(realised),
            "metric": rows.metric,
            "value": rows.value,
            "unit": rows.unit,
            "status": rows.value.isna().map({True: "out_of_memory", False: "printed"}),
            "reason": rows.note.where(rows.value.isna(), None).map(
                lambda note: f"the paper prints {note}" if isinstance(note, str) else None
            ),
        }
    )
    return frame.assign(label=f"paper: {TITLE}{f', {models}' if models else ''}; {GPU}")
