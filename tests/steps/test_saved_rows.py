"""Test that a killed step keeps its pieces, and that pieces of another state are not read."""

import pytest

from seerbench.errors import ResultsError
from seerbench.rows.provenance import provenance
from seerbench.rows.store import read_rows
from seerbench.steps.saved_rows import SavedRows


def execution():
    return provenance("tasks ruler", command="c", preset="p", scale="s", seed=0, device="cpu")


def row(task, score=0.5, **more):
    fixed = {"experiment": "ruler", "model": "m", "corpus": "c", "context": 64, "bucket": "64", "method": "dense"}
    return fixed | {"task": task, "example": 0, "score": score} | more


def saved(tmp_path, run=None, state=("a",), files=()):
    return SavedRows("tasks", tmp_path / "tasks" / "ruler.parquet", run or execution(), state, files)


def test_pieces_of_two_executions_become_one_file(tmp_path):
    first = execution()
    killed = saved(tmp_path, first)
    assert not killed.has("one")
    killed.save("one", [row("one", depth=0.25), row("one")])
    second = execution()
    again = saved(tmp_path, second)
    assert [again.has(name) for name in ("one", "two")] == [True, False]
    again.save("two", [row("two", score=1.0)])
    again.join()
    rows, runs, _ = read_rows(tmp_path / "tasks" / "ruler.parquet", "tasks")
    assert rows.task.tolist() == ["one", "one", "two"]
    assert rows.score.tolist() == [0.5, 0.5, 1.0]
    assert rows.depth.isna().tolist() == [False, True, True]
    assert rows.run_id.tolist() == [first["run_id"]] * 2 + [second["run_id"]]
    assert {run["run_id"] for run in runs} == {first["run_id"], second["run_id"]}
    assert [path.name for path in (tmp_path / "tasks").iterdir()] == ["ruler.parquet"]


def test_pieces_of_another_state_or_of_another_input_are_not_read(tmp_path):
    gates = tmp_path / "gates"
    gates.write_text("1")
    saved(tmp_path, files=[gates]).save("one", [row("one")])
    assert saved(tmp_path, files=[gates]).has("one")
    assert not saved(tmp_path, state=("b",), files=[gates]).has("one")
    gates.write_text("22")
    assert not saved(tmp_path, files=[gates]).has("one")


def test_a_piece_that_is_not_right_is_not_saved(tmp_path):
    pieces = saved(tmp_path)
    with pytest.raises(ResultsError, match="no correct or score"):
        pieces.save("one", [row("one", score=None)])
    assert not saved(tmp_path).has("one")
