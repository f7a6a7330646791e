"""Table 2: look-ups, LongBench where a run has it, and a warning if even dense attention fails the tasks."""

import pytest
from synthetic_rows import longbench_rows, origin

from seerbench.artefacts import table2
from seerbench.rows.store import write_rows


@pytest.fixture
def longbench(tmp_path):
    run = origin("tasks longbench")
    write_rows(tmp_path / "tasks" / "longbench.parquet", "tasks", longbench_rows(run["run_id"]), run)
    return tmp_path


def test_tasks_that_dense_does_not_solve_are_named(collect):
    frame = collect("table2")
    without = table2.remarks(frame)
    dense = (frame.source == "measured") & (frame.method == "dense") & (frame.task == "passkey")
    frame.loc[dense, "value"] = 35.0
    (note,) = table2.remarks(frame)[len(without) :]
    for text in ("35%", "256-512"):
        assert text in note


def test_longbench_is_shown_where_a_run_has_it(longbench, collect):
    frame = collect("table2", longbench)
    cells = table2.render(frame)
    dense = cells[(cells.source == "measured") & (cells.method == "Dense")].iloc[0]
    assert dense["0-4k"].startswith("60.00")  # (50 + 70) / 2, unweighted over tasks
    minference = cells[(cells.source == "measured") & cells.method.str.startswith("MInference")].iloc[0]
    assert minference["0-4k"] == "refused, note 1"
    assert list(cells.columns[-3:]) == ["0-4k", "4-8k", "8k+"]
    remarks = " ".join(table2.remarks(frame))
    assert "edition of a test" in remarks
    assert "25%" in remarks  # of the prompts were cut
