"""Rows come back as they were written; rows and files that do not fit are refused; writes are atomic."""

import errno
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rows.made_rows import a_run, rows_for
from seerbench.errors import ResultsError
from seerbench.rows.schema import TABLES
from seerbench.rows.store import Run, read_rows, to_table, write_rows


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
        ({"ms": None}, "ms"),
        ({"ms": "fast"}, "ms"),
        ({"round": 0.5}, "round"),
        ({"speed": 1.0}, "speed"),
        ({"run_id": "stranger"}, "stranger"),
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
    with pytest.raises(ResultsError, match="stage"):
        to_table("samples", rows)


def test_foreign_and_broken_files_are_refused_by_path_and_field(tmp_path):
    folder = tmp_path / "samples"
    folder.mkdir()
    bad = folder / "a.parquet"
    bad.write_bytes(b"PAR1 no PAR1")
    with pytest.raises(ResultsError, match=r"a\.parquet"):
        Run(tmp_path).table("samples")
    pd.DataFrame({"a": [1]}).to_parquet(bad)
    with pytest.raises(ResultsError, match=r"seerbench\.table"):
        Run(tmp_path).table("samples")
    run = a_run()
    write_rows(bad, "recall", rows_for("recall", run), run)
    with pytest.raises(ResultsError, match="recall"):
        Run(tmp_path).table("samples")
    write_rows(bad, "samples", rows_for("samples", run), run)
    good = pq.read_table(bad)
    pq.write_table(good.drop_columns(["ms"]), bad)
    with pytest.raises(ResultsError, match="ms"):
        Run(tmp_path).table("samples")
    wrong = good.set_column(good.schema.get_field_index("ms"), "ms", pa.array(["1", "2", "3"]))
    pq.write_table(wrong, bad)
    with pytest.raises(ResultsError, match="string"):
        Run(tmp_path).table("samples")
    old = {**good.schema.metadata, b"seerbench.schema": b"0"}
    pq.write_table(good.replace_schema_metadata(old), bad)
    with pytest.raises(ResultsError, match="version 0"):
        Run(tmp_path).table("samples")


def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch):
    run, path = a_run(), tmp_path / "samples" / "a.parquet"
    write_rows(path, "samples", rows_for("samples", run), run)
    before = path.read_bytes()

    def no_space(table, where, **_):
        Path(where).write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device", str(where))

    monkeypatch.setattr(pq, "write_table", no_space)
    with pytest.raises(OSError, match="No space"):
        write_rows(path, "samples", rows_for("samples", run, 9), run)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["a.parquet"]


def test_no_run_and_unknown_tables_say_so(tmp_path):
    with pytest.raises(ResultsError, match="nowhere"):
        Run(tmp_path / "nowhere")
    with pytest.raises(ResultsError, match="samples, cells"):
        Run(tmp_path).table("sample")
    assert Run(tmp_path).table("samples").empty


def test_rows_are_prepared_again_only_when_a_file_has_changed(tmp_path):
    run, calls = a_run(), []

    def prepare(table, rows):
        calls.append(table)
        return rows.assign(doubled=2 * rows.ms)

    rows = rows_for("samples", run)
    write_rows(tmp_path / "samples" / "a.parquet", "samples", rows, run)
    reader = Run(tmp_path)
    first = reader.table("samples", prepare=prepare)
    first["doubled"] = 0.0  # a frame is the caller's own
    assert reader.table("samples", prepare=prepare).doubled.tolist() == [2 * row["ms"] for row in rows]
    assert calls == ["samples"]
    assert "doubled" not in reader.table("samples")
    later = a_run(run_id="later")
    write_rows(tmp_path / "samples" / "b.parquet", "samples", rows_for("samples", later), later)
    assert len(reader.table("samples", prepare=prepare)) == 2 * len(rows)
    assert set(reader.table("runs").run_id) == {run["run_id"], "later"}
    write_rows(tmp_path / "samples" / "b.parquet", "samples", rows_for("samples", later)[:1], later)
    assert len(reader.table("samples", prepare=prepare)) == len(rows) + 1
    assert calls == ["samples"] * 3


def test_nan_is_an_empty_value_only_where_the_table_allows_it():
    run = a_run()
    rows = rows_for("perplexity", run)
    rows[0]["nll"] = np.nan
    assert to_table("perplexity", rows)["nll"].null_count == 2
    rows[0] = rows[0] | {"tokens": np.nan}
    with pytest.raises(ResultsError, match="tokens"):
        to_table("perplexity", rows)
