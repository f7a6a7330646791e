"""Make rows of any table and their provenance, for the tests of this folder."""

import pyarrow as pa

from seerbench.rows.provenance import finish, provenance
from seerbench.rows.schema import TABLES


def a_run(**changes):
    run = provenance("test", preset="cpu", scale="test scale", seed=0, device="cpu")
    return {**finish(run), "commit": "0" * 40, "dirty": False, **changes}


def rows_for(table, run, count=3):
    """Return rows that fit a table; in the last one every optional column but the reason is empty."""
    values = {pa.string(): "x", pa.float64(): 0.5, pa.int64(): 7, pa.bool_(): True}
    rows = []
    for index in range(count):
        row = {name.lstrip("?"): values[kind] for name, kind in TABLES[table].items()}
        if index == count - 1:
            row |= {name[1:]: None for name in TABLES[table] if name[0] == "?" and name != "?reason"}
        rows.append(row | {"run_id": run["run_id"]})
    return rows
