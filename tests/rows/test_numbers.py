"""Numbers of rows are finite, or the row says why there is none; every wrong value is refused by name."""

import math
import shutil
from pathlib import Path
from tempfile import mkdtemp

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rows.made_rows import a_run, rows_for
from seerbench.errors import ResultsError
from seerbench.rows import store
from seerbench.rows.schema import NUMBER, TABLES
from seerbench.rows.store import read_rows, write_rows

RUN = a_run()
VALUES = st.sampled_from(
    [
        None,
        math.nan,
        math.inf,
        -math.inf,
        "",
        "text",
        0,
        -1,
        2**70,
        1.5,
        True,
        b"bytes",
        [1],
        {"a": 1},
        1j,
        object(),
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([name for name in TABLES if name != "runs"]), st.data())
def test_any_value_in_any_column_is_written_right_or_refused(table, data):
    rows = rows_for(table, RUN)
    names = [name.lstrip("?") for name in TABLES[table]]
    column, value = data.draw(st.sampled_from([*names, "extra"])), data.draw(VALUES)
    rows[1] = rows[1] | {column: value}
    if "status" in rows[0]:
        rows = [row | {"status": data.draw(st.sampled_from(["measured", "failed"]))} for row in rows[:2]]
    folder = Path(mkdtemp())
    try:
        write_rows(folder / "a.parquet", table, rows, RUN)
    except ResultsError as error:
        named = table in str(error)
        assert named
        assert not list(folder.iterdir())
        return
    finally:
        written = list(folder.rglob("*.parquet"))
        frame = read_rows(written[0])[0] if written else None
        shutil.rmtree(folder)
    numbers = [name.lstrip("?") for name, kind in TABLES[table].items() if kind == NUMBER]
    measured = frame[frame.status == "measured"] if "status" in frame else frame
    assert not measured[numbers].map(lambda number: math.isinf(number)).to_numpy().any()


def a_measured_row(**changes):
    names = {"experiment": "contexts", "method": "streaming", "document": "d3", "status": "measured"}
    return [rows_for("perplexity", RUN)[0] | names | {"reason": None} | changes]


@pytest.mark.parametrize("number", [None, math.nan, math.inf])
def test_a_measured_row_without_its_number_is_named(tmp_path, number):
    with pytest.raises(ResultsError, match=r"experiment contexts, method streaming, .*document d3"):
        write_rows(tmp_path / "a.parquet", "perplexity", a_measured_row(nll=number), RUN)
    failed = a_measured_row(nll=None, status="failed", reason="the model's loss is not a number (nan)")
    write_rows(tmp_path / "a.parquet", "perplexity", failed, RUN)
    assert read_rows(tmp_path / "a.parquet")[0].nll.isna().all()


def test_a_foreign_file_with_such_a_row_is_refused_by_file_and_row(tmp_path):
    path = tmp_path / "a.parquet"
    write_rows(path, "perplexity", a_measured_row(), RUN)
    content = pq.read_table(path)
    place = content.schema.get_field_index("nll")
    empty = content.set_column(place, content.schema.field("nll"), pa.array([None], pa.float64()))
    pq.write_table(empty, path)
    with pytest.raises(ResultsError, match=r"a\.parquet.*document d3.* has no nll"):
        read_rows(path)
    changed = content.set_column(place, content.schema.field("nll"), pa.array([0.25]))
    pq.write_table(changed, path)
    with pytest.raises(ResultsError, match="damaged"):
        read_rows(path)
    older = {key: value for key, value in content.schema.metadata.items() if key != store.DIGEST_KEY}
    pq.write_table(changed.replace_schema_metadata(older), path)
    assert read_rows(path)[0].nll.tolist() == [0.25]


def test_a_task_without_a_mark_needs_a_reason(tmp_path):
    row = rows_for("tasks", RUN)[0] | {"correct": None, "score": None}
    write_rows(tmp_path / "a.parquet", "tasks", [row], RUN)
    with pytest.raises(ResultsError, match="correct or score"):
        write_rows(tmp_path / "a.parquet", "tasks", [row | {"reason": None}], RUN)
