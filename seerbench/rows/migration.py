"""Fill the columns that files of schema version 1 lack, from the texts that those files have.

Version 1 stored the kind of inputs and the scale of a run in words only. This is the one place that reads those
words; all other code reads the columns. `store.read_rows` calls it. Columns that it cannot fill stay empty.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from seerbench.rows.schema import CAPTURED, RANDOM, RANDOM_WEIGHTS

# First words of `runs.scale` in version 1 -> scale_kind.
SCALES = {
    "test scale": "toy",
    "small scale": "small",
    "kernels at the paper's shape": "paper",
    "the paper's checkpoints": "paper",
}
# `cells.inputs` of version 1 named the model, and its training length where the context was beyond it:
# "captured:llama, beyond the 8192 tokens of its training" or "random weights:llama-3.1-8b".
INPUTS = re.compile(r"(?P<kind>captured|random weights):(?P<model>[^,]+)(, beyond the (?P<trained>\d+) tokens)?")


def migrated_rows(table: str, content: pa.Table) -> pa.Table:
    """Return rows of version 1 with the columns of version 2, as far as their texts determine them."""
    if table != "cells" or "inputs" not in content.schema.names:
        return content
    columns = [inputs_columns(text) for text in content["inputs"].to_pylist()]
    for name, kind in (
        ("inputs_kind", pa.string()),
        ("inputs_model", pa.string()),
        ("inputs_trained_context", pa.int64()),
    ):
        content = content.append_column(name, pa.array([row[name] for row in columns], kind))
    return content


def migrated_run(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `runs` row of version 1 with its scale_kind."""
    kinds = [kind for words, kind in SCALES.items() if run["scale"].startswith(words)]
    return {**run, "scale_kind": kinds[0] if kinds else None}


def inputs_columns(text: str) -> dict[str, str | int | None]:
    """Return inputs_kind, inputs_model and inputs_trained_context for a text of `cells.inputs` of version 1."""
    match = INPUTS.match(text)
    if match is None:
        kind = RANDOM if text.startswith("random") else None
        return {"inputs_kind": kind, "inputs_model": None, "inputs_trained_context": None}
    return {
        "inputs_kind": CAPTURED if match["kind"] == "captured" else RANDOM_WEIGHTS,
        "inputs_model": match["model"],
        "inputs_trained_context": int(match["trained"]) if match["trained"] else None,
    }
