"""Table 2: look-ups, LongBench where a run has it, and a warning if even dense attention fails the tasks."""

import pandas as pd
import pytest
from synthetic_rows import longbench_rows, origin

from seerbench.artefacts import table2
from seerbench.rows.store import Run, write_rows


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


@pytest.fixture
def two_protocols(tmp_path, run_dir):
    """Return a run whose sparse methods also ran with two dense rows, and then answered everything."""
    tasks = Run(run_dir).table("tasks")
    tasks = tasks[tasks.experiment == "retrieval"].assign(prediction="a word", last_rows_dense=0)
    sparse = tasks[tasks.method != "dense"]
    dense_rows = sparse.assign(method=sparse.method + "+last2", last_rows_dense=2, correct=True)
    rows = pd.concat([tasks.assign(correct=tasks.distance < 300), dense_rows])
    run = origin("tasks retrieval")
    rows = rows.assign(run_id=run["run_id"]).astype(object).where(rows.notna(), None)
    write_rows(tmp_path / "tasks" / "retrieval.parquet", "tasks", rows.to_dict("records"), run)
    return tmp_path


def test_both_protocols_have_a_line(two_protocols, collect):
    frame = collect("table2", two_protocols)
    table = table2.render(frame)
    seer = table[(table.source == "measured") & table.method.str.startswith("SeerAttention")]
    assert list(seer["last rows"]) == ["sparse", "dense"]
    assert seer["512-1024"].iloc[1].startswith("100")
    assert seer["kv, 512-1024"].iloc[1] == "100"
    assert set(table[table.method == "Dense"]["last rows"]) == {""}
    remarks = " ".join(table2.remarks(frame))
    assert "had no such switch" in remarks
    assert "generated with dense attention" in remarks


def test_look_ups_are_counted_within_the_window_of_the_same_budget_and_beyond(two_protocols, collect):
    """Check with answers that are right up to a distance of 300; the window at 50% of 1024 is 299.9 tokens."""
    frame = collect("table2", two_protocols)
    split = frame[frame.reach.notna() & (frame.last_rows_dense == 0) & (frame.context == 1024)]
    assert set(split.method) == {"seer", "streaming"}
    assert set(split[split.reach == table2.WITHIN].value) == {100.0}
    assert set(split[split.reach == table2.BEYOND].value) == {0.0}
    whole = frame[frame.reach.isna() & (frame.method == "seer") & (frame.task == "kv") & (frame.context == 1024)]
    assert split[(split.method == "seer") & (split.task == "kv")]["count"].sum() == whole["count"].iloc[0]
    assert "StreamingLLM 50% 100 / 0" in " ".join(table2.remarks(frame))


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
