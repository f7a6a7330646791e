"""Say which numbers a row must have: each is finite, or the row says why there is none.

store.py applies these rules when rows are written and when they are read, so that nothing downstream meets a row
that is called measured and has no number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from seerbench.rows.schema import NUMBER, TABLES

# table -> groups of columns: a row needs a number in one column of each group, unless it is accounted for. A loss
# of a training is empty for steps without such windows; update_weights ends a training that overflows.
NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {
    "cells": (("sparsity_realised",),),
    "perplexity": (("nll",), ("sparsity_realised",)),
    "tasks": (("correct", "score"),),
}
# Columns that name a row in an error, where its table has them.
NAMING = ("experiment", "sweep", "cell", "name", "method", "context", "task", "example", "document", "step")


def without_number(table: str, rows: pd.DataFrame) -> str | None:
    """Return, in words, the first row that lacks a number or has one that is not finite; None if there is none.

    A row whose status is not `measured`, or that gives a reason where its table has no status, needs no number. One
    that failed may have an infinite error.
    """
    numbers = [name.lstrip("?") for name, kind in TABLES[table].items() if kind == NUMBER]
    infinite = np.isinf(rows[numbers].to_numpy(float))
    if "status" in rows:
        infinite &= (rows.status != "failed").to_numpy()[:, None]
    if infinite.any():
        row, column = np.argwhere(infinite)[0]
        return f"{_named(rows, row)} has {numbers[column]} {rows[numbers[column]].iloc[row]}, which is not finite"
    accounted = rows.status != "measured" if "status" in rows else _given(rows, ["reason"])
    for group in NEEDED.get(table, ()):
        lacking = np.flatnonzero(~(accounted | _given(rows, group)))
        if len(lacking):
            return f"{_named(rows, lacking[0])} has no {' or '.join(group)} and no reason for that"
    return None


def _given(rows: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """Return, by row, whether one of these columns exists and has a value."""
    return rows.reindex(columns=list(columns)).notna().any(axis=1)


def _named(rows: pd.DataFrame, place: int) -> str:
    """Return the name of a row in words."""
    names = ", ".join(f"{name} {rows[name].iloc[place]}" for name in NAMING if name in rows)
    return f"the row ({names})"
