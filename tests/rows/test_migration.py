"""Rows of schema version 1 get the columns of version 2 from their texts."""

import json

import pyarrow.parquet as pq
import pytest

from rows.made_rows import a_run, rows_for
from seerbench.rows import store
from seerbench.rows.migration import migrated_run
from seerbench.rows.schema import TABLES
from seerbench.rows.store import Run, write_rows


@pytest.mark.parametrize(
    ("inputs", "kind", "model", "trained"),
    [
        ("random", "random", None, None),
        ("random: a dynamic method's choice and sparsity mean nothing on them", "random", None, None),
        ("captured:long", "captured", "long", None),
        ("captured:llama, beyond the 8192 tokens of its training", "captured", "llama", 8192),
        ("random weights:llama-3.1-8b", "random_weights", "llama-3.1-8b", None),
        ("something else", None, None, None),
    ],
)
def test_rows_of_version_1_get_their_new_columns_from_the_texts(tmp_path, inputs, kind, model, trained):
    path, run = tmp_path / "cells" / "a.parquet", a_run(scale="small scale: a test")
    new = ("inputs_kind", "inputs_model", "inputs_trained_context")
    rows = [row | {"inputs": inputs} for row in rows_for("cells", run)]
    write_rows(path, "cells", rows, run)
    content = pq.read_table(path)
    del run["scale_kind"]
    old = {b"seerbench.schema": b"1", b"seerbench.runs": json.dumps([run]).encode()}
    kept = {key: value for key, value in content.schema.metadata.items() if key != store.DIGEST_KEY}
    content = content.drop_columns(list(new)).replace_schema_metadata(kept | old)
    pq.write_table(content, path)
    frame = Run(tmp_path).table("cells")
    found = frame[list(new)].astype(object).where(frame[list(new)].notna(), None)
    assert {tuple(row) for row in found.itertuples(index=False)} == {(kind, model, trained)}
    assert Run(tmp_path).table("runs").scale_kind.tolist() == ["small"]
    assert frame.columns.tolist() == [name.lstrip("?") for name in TABLES["cells"]]


@pytest.mark.parametrize(
    ("scale", "kind"),
    [
        ("test scale: an untrained toy", "toy"),
        ("kernels at the paper's shape, random inputs", "paper"),
        ("the paper's checkpoints, data sets and recipes", "paper"),
        ("one kernel or method, random inputs", None),
    ],
)
def test_runs_of_version_1_get_the_kind_of_their_scale(scale, kind):
    assert migrated_run({"scale": scale})["scale_kind"] == kind
