"""Read the rows of methods with a requested sparsity, and refuse those that skip another share than was requested.

A name such as "FlashPrefill 90%" promises how much a method skips. A method cannot keep that promise if the blocks
that it always keeps exceed the budget. Its rows would be compared at a sparsity that they do not have, so they are
shown as refused, with the reason. Newer rows are refused when they are measured (core/top_k.py); this module
applies the same rule to older ones.

Tables, figures, claims and advice get perplexities, tasks, recall and cells from `rows`, and no other module reads
these tables; a test checks that. The files keep the rows as they were measured.
"""

from __future__ import annotations

import pandas as pd

from seerbench.rows.schema import REFUSED, TOLERANCE
from seerbench.rows.store import Run

ROUNDING = 1e-9  # The difference of two numbers with few decimals may be off by this much.
# table -> the columns that name one setting. The realised sparsity of a setting is the mean over its rows:
# documents, examples, or the heads of all layers. Tasks are grouped by bucket, since a bucket of LongBench has
# prompts of many lengths. How new tokens are decoded does not matter here, since the request is about the prefill.
SETTINGS: dict[str, list[str]] = {
    "perplexity": ["experiment", "model", "corpus", "context", "method", "gate", "recipe", "sparsity_requested"],
    "tasks": ["experiment", "model", "corpus", "bucket", "method", "gate", "sparsity_requested"],
    "recall": ["experiment", "model", "corpus", "context", "method", "gate", "sparsity_requested"],
    "cells": ["run_id", "cell", "method"],
}
# table -> the columns that hold what was measured; they are empty in a refused row.
NUMBERS = {
    "perplexity": ["nll"],
    "tasks": ["correct", "score"],
    "recall": ["recall", "mass", "asked_kept"],
    "cells": [],  # The samples hold the times, and timings.py leaves them out.
}
# Sweeps that time one layer. MoA has its budget over all layers of a model, so one of them may skip any share.
SWEEPS_OF_ONE_LAYER = ("kernel", "methods")


def rows(run: Run, table: str, part: str | None = None) -> pd.DataFrame:
    """Return the rows of any table as `Run.table` does; those that break their request are refused.

    Rows that say how new tokens were decoded are left out: their loss or score is that of a prefill and of a method
    for decoding together (`decoded_rows`).
    """
    return run.table(table, part, _of_prefill if table in SETTINGS else None)


def decoded_rows(run: Run, table: str, part: str | None = None) -> pd.DataFrame:
    """Return the rows of `perplexity` or `tasks` that say how new tokens were decoded; refused as in `rows`."""
    return run.table(table, part, _of_decoding)


def _of_prefill(table: str, measured: pd.DataFrame) -> pd.DataFrame:
    return refused(table, measured[measured.decode.isna()] if "decode" in measured else measured)


def _of_decoding(table: str, measured: pd.DataFrame) -> pd.DataFrame:
    return refused(table, measured[measured.decode.notna()])


def refused(table: str, measured: pd.DataFrame) -> pd.DataFrame:
    """Return the rows; those whose setting skips another share of the blocks than was requested are refused.

    A refused row has the status "refused", a reason in words, and no number. Tables that lack the columns `status`
    and `reason` get them. Rows without a requested sparsity (dense attention, methods at their own setting) are
    never refused here.

    Args:
        table: a key of SETTINGS.
        measured: rows of this table. The rows of one setting belong together, since its sparsity is their mean.
    """
    marked = measured.copy()
    if "reason" not in marked:
        marked["reason"] = None
    marked["reason"] = marked.reason.astype(object).where(marked.reason.notna(), None)
    if "status" not in marked:
        marked["status"] = marked.reason.isna().map({True: "measured", False: REFUSED}).astype(object)
    asked = marked.sparsity_requested.notna() & (marked.status == "measured")
    if not asked.any():
        return marked
    settings = marked[asked].groupby(SETTINGS[table], dropna=False, sort=False)
    realised = settings.sparsity_realised.transform("mean").astype(float)
    difference = realised - marked.sparsity_requested[asked].astype(float)
    breaks = difference.index[difference.abs() > TOLERANCE + ROUNDING]
    facts = marked.loc[breaks, ["method", "sparsity_requested"]].assign(realised=realised[breaks])
    facts["one_layer"] = marked.sweep[breaks].isin(SWEEPS_OF_ONE_LAYER) if "sweep" in marked else False
    marked.loc[breaks, "reason"] = [_reason(*row) for row in facts.itertuples(index=False)]
    marked.loc[breaks, "status"] = REFUSED
    for column in [name for name in NUMBERS[table] if name in marked]:
        marked[column] = marked[column].where(~marked.index.isin(breaks), None)
    return marked


def _reason(method: str, requested: float, realised: float, one_layer: bool) -> str:
    """Return in words what a setting skips, what was requested, and why the two differ."""
    skips = f"skips {realised:.1%} where {requested:.0%} was requested"
    if one_layer and method.startswith("moa"):
        return f"{skips}: its plan has this budget over all layers, and this is one of them"
    if realised > requested:
        return f"{skips}: more than {100 * TOLERANCE:.0f} points above"
    return f"{skips}: blocks that it always keeps exceed the budget"
