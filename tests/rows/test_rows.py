"""Rows: round trips, refusals, atomic writes, provenance, publishing."""

import errno
import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seerbench.errors import MissingRows, ResultsError
from seerbench.rows import store
from seerbench.rows.migration import migrated_run
from seerbench.rows.provenance import commit_and_dirty, finish, provenance
from seerbench.rows.publish import publish
from seerbench.rows.schema import TABLES
from seerbench.rows.staleness import stale
from seerbench.rows.store import Run, read_rows, to_table, write_rows


def a_run(**changes):
    run = provenance("test", preset="cpu", scale="test scale", seed=0, device="cpu")
    return {**finish(run), "commit": "0" * 40, "dirty": False, **changes}


def rows_for(table, run, count=3):
    """Rows that fit a table, with every optional column empty in the last one."""
    values = {pa.string(): "x", pa.float64(): 0.5, pa.int64(): 7, pa.bool_(): True}
    rows = []
    for index in range(count):
        row = {name.lstrip("?"): values[kind] for name, kind in TABLES[table].items()}
        if index == count - 1:
            row |= {name[1:]: None for name in TABLES[table] if name[0] == "?"}
        rows.append(row | {"run_id": run["run_id"]})
    return rows


@pytest.mark.parametrize("table", [name for name in TABLES if name != "runs"])
def test_rows_come_back_as_they_went(tmp_path, table):
    run = a_run()
    rows = rows_for(table, run)
    path = tmp_path / table / "part.parquet"
    write_rows(path, table, rows, run)
    frame, runs, found = read_rows(path)
    assert found == table
    assert runs == [run]
    back = frame.astype(object).where(frame.notna(), None).to_dict("records")
    assert back == rows
    assert Run(tmp_path).table(table).equals(frame)
    assert Run(tmp_path).table("runs").run_id.tolist() == [run["run_id"]]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ms": None}, "column ms has 1 empty"),
        ({"ms": "fast"}, "column ms is not double"),
        ({"round": 0.5}, "column round is not int64"),
        ({"speed": 1.0}, "unknown columns"),
        ({"run_id": "stranger"}, "runs without provenance"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, change, text):
    run = a_run()
    rows = rows_for("samples", run)
    rows[1] = rows[1] | change
    with pytest.raises(ResultsError, match=text):
        write_rows(tmp_path / "samples" / "a.parquet", "samples", rows, run)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_missing_column_is_named():
    rows = [{key: value for key, value in row.items() if key != "stage"} for row in rows_for("samples", a_run())]
    with pytest.raises(ResultsError, match=r"missing columns \['stage'\]"):
        to_table("samples", rows)


def test_foreign_and_broken_files_are_refused_by_path_and_field(tmp_path):
    folder = tmp_path / "samples"
    folder.mkdir()
    bad = folder / "a.parquet"
    bad.write_bytes(b"PAR1 no PAR1")
    with pytest.raises(ResultsError, match=r"a\.parquet is not readable parquet"):
        Run(tmp_path).table("samples")
    pd.DataFrame({"a": [1]}).to_parquet(bad)
    with pytest.raises(ResultsError, match="was not written by SeerBench"):
        Run(tmp_path).table("samples")
    run = a_run()
    write_rows(bad, "recall", rows_for("recall", run), run)
    with pytest.raises(ResultsError, match="holds the table recall, expected samples"):
        Run(tmp_path).table("samples")
    write_rows(bad, "samples", rows_for("samples", run), run)
    good = pq.read_table(bad)
    pq.write_table(good.drop_columns(["ms"]), bad)
    with pytest.raises(ResultsError, match="column ms is missing"):
        Run(tmp_path).table("samples")
    wrong = good.set_column(good.schema.get_field_index("ms"), "ms", pa.array(["1", "2", "3"]))
    pq.write_table(wrong, bad)
    with pytest.raises(ResultsError, match="column ms is string, expected double"):
        Run(tmp_path).table("samples")
    old = {**good.schema.metadata, b"seerbench.schema": b"0"}
    pq.write_table(good.replace_schema_metadata(old), bad)
    with pytest.raises(ResultsError, match="schema version 0"):
        Run(tmp_path).table("samples")


def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch):
    run, path = a_run(), tmp_path / "samples" / "a.parquet"
    write_rows(path, "samples", rows_for("samples", run), run)
    before = path.read_bytes()

    def no_space(table, where, **_):
        Path(where).write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device", str(where))

    monkeypatch.setattr(store.pq, "write_table", no_space)
    with pytest.raises(OSError, match="No space"):
        write_rows(path, "samples", rows_for("samples", run, 9), run)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["a.parquet"]


def test_no_run_and_unknown_tables_say_so(tmp_path):
    with pytest.raises(ResultsError, match="measure first"):
        Run(tmp_path / "nowhere")
    with pytest.raises(ResultsError, match="the tables are samples, cells"):
        Run(tmp_path).table("sample")
    assert Run(tmp_path).table("samples").empty


def test_the_commit_is_handed_in_or_read_but_never_guessed(monkeypatch, tmp_path):
    monkeypatch.setenv("SEERBENCH_COMMIT", "abc")
    monkeypatch.setenv("SEERBENCH_DIRTY", "0")
    assert commit_and_dirty(tmp_path) == ("abc", False)
    monkeypatch.delenv("SEERBENCH_DIRTY")
    assert commit_and_dirty(tmp_path) == ("abc", None)
    monkeypatch.delenv("SEERBENCH_COMMIT")
    assert commit_and_dirty(tmp_path) == (None, None)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert commit_and_dirty(tmp_path) == (None, None)  # no commit yet
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", tmp_path, *author, "commit", "-qm", "x", "--allow-empty"], check=True)
    commit, dirty = commit_and_dirty(tmp_path)
    assert len(commit) == 40
    assert dirty is False
    (tmp_path / "new").write_text("x")
    assert commit_and_dirty(tmp_path) == (commit, True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))  # as a git hook of another repository sets it
    assert commit_and_dirty(tmp_path) == (commit, True)


def test_publishing_is_deliberate_and_checked(tmp_path):
    fresh, published = tmp_path / "fresh", tmp_path / "published" / "box"
    run = a_run(dirty=True)
    write_rows(fresh / "cells" / "a.parquet", "cells", rows_for("cells", run), run)
    with pytest.raises(ResultsError, match="dirty or unknown commit"):
        publish(fresh, published)
    assert not published.exists()
    for number in range(2):
        run = a_run(run_id=f"run-{number}")
        write_rows(fresh / "cells" / f"{'ab'[number]}.parquet", "cells", rows_for("cells", run), run)
    (fresh / "plans").mkdir()
    (fresh / "plans" / "moa.json").write_text("{}")
    publish(fresh, published)
    assert len(Run(published).table("cells")) == 6
    assert Run(published).table("runs").run_id.tolist() == ["run-0", "run-1"]
    assert stale(published) == []
    manifest = json.loads((published / "MANIFEST.json").read_text())
    assert list(manifest) == ["cells/all.parquet", "plans/moa.json"]
    old = a_run(source_digest="older")
    write_rows(published / "cells" / "all.parquet", "cells", rows_for("cells", old), old)
    file, kernels = stale(published)
    assert "not the file that was published" in file
    assert "cannot tell" in kernels
    assert "commit 000000000 is not in this repository; fetch the whole history" in kernels


def test_nan_is_an_empty_value_only_where_the_table_allows_it():
    run = a_run()
    rows = rows_for("perplexity", run)
    rows[0]["nll"] = np.nan
    assert to_table("perplexity", rows)["nll"].null_count == 2
    rows[0] = rows[0] | {"tokens": np.nan}
    with pytest.raises(ResultsError, match="tokens"):
        to_table("perplexity", rows)


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
    content = content.drop_columns(list(new)).replace_schema_metadata(content.schema.metadata | old)
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


def test_missing_rows_are_fields_and_a_sentence():
    error = MissingRows("cells", "cells of the sweep 'kernel'", "latency PRESET kernel CONTEXT", Path("run"))
    assert isinstance(error, ResultsError)
    assert (error.table, error.what, error.folder) == ("cells", "cells of the sweep 'kernel'", Path("run"))
    assert "latency PRESET kernel CONTEXT" in str(error)
    assert MissingRows("tasks", "marks").step is None
