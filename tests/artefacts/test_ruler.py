"""Test the table of RULER: means, tasks that dense attention does not solve, effective lengths."""

import pytest
from synthetic_rows import origin, ruler_rows

from seerbench.artefacts import ruler
from seerbench.rows.store import write_rows


@pytest.fixture
def frame(collect):
    return collect("ruler")


def line(frame, method, context, task, last_rows=0):
    wanted = (frame.method == method) & (frame.context == context) & (frame.task == task)
    (found,) = frame[wanted & (frame.last_rows_dense == last_rows)].itertuples()
    return found


def test_means_are_over_all_tasks_and_over_those_that_dense_solves(frame):
    # dense: 1, 1, 0.5 and 0
    assert line(frame, "dense", 4096, ruler.MEAN).value == pytest.approx(62.5)
    assert line(frame, "dense", 4096, ruler.MEAN_OF_SOLVED).value == pytest.approx(250 / 3)
    assert line(frame, "streaming", 4096, ruler.MEAN_OF_SOLVED).value == pytest.approx(125 / 3)
    assert line(frame, "streaming", 4096, ruler.MEAN_OF_SOLVED, last_rows=2).value == pytest.approx(250 / 3)
    assert line(frame, "dense", 4096, "cwe").value == 0


def test_a_mean_without_a_task_is_refused(frame):
    for mean in ruler.MEANS:
        refused = line(frame, "streaming", 1024, mean)
        assert (refused.status, refused.reason) == ("refused", "no answers for vt")
    assert line(frame, "streaming", 1024, "vt").reason == "too short"


def test_the_table_has_a_line_per_length_and_protocol_and_a_column_per_task(frame):
    table = ruler.render(frame)
    assert list(table.columns[6:]) == [*ruler.MEANS, "single_1", "multikey_1-books", "vt", "cwe"]
    assert list(table["length"]) == ["1k"] * 3 + ["4k"] * 3
    assert list(table["last rows"]) == ["", "sparse", "dense"] * 2
    sparse = table[table["last rows"] == "sparse"]
    assert list(sparse["single_1"]) == ["50", "50"]
    assert sparse["mean"].iloc[0].startswith("refused, note")
    assert sparse["mean"].iloc[1].endswith("(0.51)")


def test_remarks_say_what_a_mean_is_over(frame):
    notes = " ".join(ruler.remarks(frame))
    assert "over 4 of RULER's 13 tasks (without niah_single_2" in notes
    assert "not RULER's average" in notes
    assert "Tasks with books in their name" in notes
    assert "scores below 25% in (instruct at 1k: cwe; instruct at 4k: cwe)" in notes
    assert "none of any method" in notes


def test_the_effective_length_is_the_longest_that_reaches_the_threshold(frame):
    frame.loc[(frame.method == "dense") & (frame.task == ruler.MEAN), "value"] = 90.0
    notes = " ".join(ruler.remarks(frame))
    assert "a mean of at least 85.6): instruct Dense 0.00 4k." in notes


def test_without_dense_rows_no_task_is_left_out(tmp_path, collect):
    run = origin("tasks")
    rows = [row for row in ruler_rows(run["run_id"]) if row["method"] != "dense"]
    write_rows(tmp_path / "tasks" / "ruler.parquet", "tasks", rows, run)
    frame = collect("ruler", tmp_path)
    for mean in ruler.MEANS:
        assert line(frame, "streaming", 4096, mean).value == pytest.approx(31.25)
    assert "Dense attention was not scored" in " ".join(ruler.remarks(frame))


def test_a_task_is_known_by_rulers_name():
    assert ruler.task_of("niah_single_2-pg19") == "niah_single_2"
    assert ruler.task_of("niah_multikey_3") == "niah_multikey_3"
