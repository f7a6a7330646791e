"""Test the maps of needles: which are counted, in which cell, and how an arm without answers is shown."""

import pytest
from synthetic_rows import origin, ruler_rows

from seerbench.artefacts import needle
from seerbench.errors import MissingRows
from seerbench.rows.store import Run, write_rows

COLORBAR = "needles found (%)"


def written(folder, rows):
    run = origin("tasks")
    rows = [{**row, "run_id": run["run_id"]} for row in rows]
    write_rows(folder / "tasks" / "ruler.parquet", "tasks", rows, run)
    return Run(folder)


def test_needles_are_counted_by_depth_and_length(tmp_path):
    rows = ruler_rows("")
    for row in rows:
        if row["method"] == "streaming" and row["task"].startswith("niah"):
            row["score"] = float(row["depth"] > 0.5)
    frame = needle.collect(written(tmp_path, rows), None)
    streaming = frame[(frame.method == "streaming") & (frame.last_rows_dense == 0) & (frame.context == 4096)]
    # Depths of k / 7 in fifths: two, one, two, one and two, each with the needle of two tasks.
    assert list(streaming.depth) == [10, 30, 50, 70, 90]
    assert list(streaming.value) == [0, 0, 50, 100, 100]
    assert list(streaming["count"]) == [4, 2, 4, 2, 4]
    assert set(frame.task) == {"niah_multikey_1-books, niah_single_1"}
    fig = needle.draw(frame)
    titles = [ax.get_title() for ax in fig.axes if ax.get_title()]
    assert titles == ["sparsity 0.50\nall rows sparse", "sparsity 0.50\nlast 2 rows dense"]
    maps = {ax.get_ylabel(): ax.images[0].get_array() for ax in fig.axes if ax.get_ylabel() and ax.images}
    assert maps["StreamingLLM"][:, 1].tolist() == [0, 0, 50, 100, 100]
    assert maps["Dense"].min() == 100


def test_a_task_that_dense_attention_does_not_solve_is_left_out_at_that_length(tmp_path):
    rows = ruler_rows("")
    for row in rows:
        if row["task"] == "niah_single_1" and row["context"] == 4096 and row["method"] == "dense":
            row["score"] = 0.0
    frame = needle.collect(written(tmp_path, rows), None)
    assert set(frame[frame.context == 1024].task) == {"niah_multikey_1-books, niah_single_1"}
    assert set(frame[frame.context == 4096].task) == {"niah_multikey_1-books"}
    for row in rows:
        if row["context"] == 4096 and row["method"] == "dense":
            row["score"] = 0.0
    frame = needle.collect(written(tmp_path, rows), None)
    assert set(frame.task) == {"niah_multikey_1-books, niah_single_1"}


def test_an_arm_without_answers_has_its_reason_and_a_cross(tmp_path):
    rows = ruler_rows("")
    for row in rows:
        if row["method"] == "streaming" and row["context"] == 1024:
            row |= {"score": None, "reason": "too short"}
    frame = needle.collect(written(tmp_path, rows), None)
    (refused,) = frame[frame.status == "refused"].itertuples()
    assert (refused.context, refused.reason) == (1024, "too short")
    fig = needle.draw(frame)
    assert sum(text.get_text() == "x" for ax in fig.axes for text in ax.texts) == 1


def test_rows_without_needles_are_missing(tmp_path):
    rows = [row for row in ruler_rows("") if not row["task"].startswith("niah")]
    with pytest.raises(MissingRows, match="needles"):
        needle.collect(written(tmp_path, rows), None)


def lines(frame):
    return [ax.get_ylabel() for ax in needle.draw(frame).axes if ax.get_ylabel() and ax.get_ylabel() != COLORBAR]


def test_lines_are_named_as_shortly_as_keeps_arms_apart(tmp_path):
    gated = [row | {"method": "seer", "gate": "long:v1"} for row in ruler_rows("") if row["method"] == "streaming"]
    longer = [
        row | {"context": 8192, "model": "yarn", "gate": "post:v1"} for row in gated if row["context"] == 4096
    ]
    assert lines(needle.collect(written(tmp_path / "one", [*gated, *longer]), None)) == ["SeerAttention\n(v1)"]
    second = [row | {"gate": "other:v1"} for row in gated]
    names = lines(needle.collect(written(tmp_path / "two", [*gated, *second]), None))
    assert names == ["SeerAttention\n(long:v1)", "SeerAttention\n(other:v1)"]
    second = [row | {"model": "base"} for row in gated]
    names = lines(needle.collect(written(tmp_path / "three", [*gated, *second]), None))
    assert sorted(name.split(":")[0] for name in names) == ["base", "instruct"]


def test_methods_at_their_own_sparsity_have_a_line_per_configuration(tmp_path):
    own = {"method": "xattention", "sparsity_requested": None}
    asked = [row for row in ruler_rows("") if row["method"] == "dense"]
    rows = [row | own | {"gate": gate} for gate in ("tau 0.9", "tau 0.8") for row in asked]
    rows += [row | {"method": "xattention", "sparsity_requested": 0.5, "gate": "stride 8"} for row in asked]
    frame = needle.collect(written(tmp_path, [*asked, *rows]), None)
    names = lines(frame)
    assert all(ax.axison for ax in needle.draw(frame).axes)  # a line without a first map has its name too
    assert names == ["Dense", "XAttention", "XAttention (tau\n0.8)", "XAttention (tau\n0.9)"]
