"""Comparisons from the file to rows, figure and exit code; impossible ones are refused."""

import time

import pytest
from typer.testing import CliRunner

from compare.kernels import EXAMPLES, METHOD, run
from seerbench import errors
from seerbench.cli import app
from seerbench.compare import present
from seerbench.compare import run as compare_run
from seerbench.core import top_k
from seerbench.core.problem import AttentionProblem
from seerbench.measure import load
from seerbench.paths import ROOT
from seerbench.rows.store import Run


@pytest.fixture(autouse=True)
def short_inputs_meet_no_request(monkeypatch):
    """Plan inputs of a few blocks as the rules say, since no number of whole blocks may be near the request."""
    monkeypatch.setattr(top_k, "MIN_BLOCKS", 64)


def test_a_method_is_timed_with_its_plan(tmp_path):
    (tmp_path / "method.py").write_text(METHOD.replace("CHANGE", "mask"))
    outcome = run(str(tmp_path / "method.py"), tmp_path)
    assert outcome.findings == []
    assert set(outcome.frame.method) == {"dense", "mine"}
    assert outcome.frame.status.eq("measured").all()
    assert "total" in set(Run(tmp_path / "rows" / "compare").table("samples").stage)


def test_rows_summary_and_figure_are_written(tmp_path):
    outcome = run(str(EXAMPLES / "gather_attention.py"), tmp_path)
    assert outcome.findings == []
    assert {path.suffix for path in outcome.files} == {".parquet", ".svg", ".png", ".csv"}
    cells = Run(tmp_path / "rows" / "compare").table("cells").set_index("method")
    assert set(cells.status) == {"measured"}
    assert cells.source_digest["gather_attention"] != cells.source_digest["dense"]
    line = outcome.frame.set_index("method").loc["gather_attention"]
    assert line.low <= line.speedup <= line.high
    assert line.reference == "dense"
    assert "gather_attention" in present.table(outcome.frame)
    assert len(present.below(outcome.frame, "gather_attention", 1e6)) == 1
    assert present.below(outcome.frame, "gather_attention", 1e-6).empty
    unmeasured = outcome.frame.assign(speedup=float("nan"), high=float("nan"))
    assert len(present.below(unmeasured, "gather_attention", 1e-6)) == 1


def test_without_matplotlib_there_is_no_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_run, "can_draw", lambda: False)
    outcome = run(str(EXAMPLES / "gather_attention.py"), tmp_path)
    assert {path.suffix for path in outcome.files} == {".parquet", ".csv"}
    assert all(path.exists() for path in outcome.files)
    assert not list((tmp_path / "figures").glob("*.svg"))


def test_a_wrong_one_writes_nothing(tmp_path):
    outcome = run(str(EXAMPLES / "wrong" / "ignores_mask.py"), tmp_path)
    assert outcome.findings
    assert outcome.frame is None
    assert not (tmp_path / "rows").exists()


def test_a_file_can_be_a_baseline_and_names_must_differ(tmp_path):
    mine = str(EXAMPLES / "gather_attention.py")
    with pytest.raises(errors.CompareError, match="--name"):
        run(mine, tmp_path, against=[mine])
    outcome = run(mine, tmp_path, against=[mine], name="other")
    assert outcome.frame.reference[0] == "gather_attention"


def test_exit_codes(tmp_path):
    def call(*arguments):
        common = ["--contexts", "64", "--sparsity", "0.5", "--block", "16", "--head-dim", "16", "--rounds", "10"]
        places = ["--device", "cpu", "--against", "dense", "--results", tmp_path, "--figures", tmp_path]
        return CliRunner().invoke(app, [*map(str, ("compare", *arguments, *common, *places))])

    wrong = call(EXAMPLES / "wrong" / "empty_row.py")
    assert wrong.exit_code == 3
    assert "guess  NaN on a row without a block" in wrong.stdout
    slow = call(EXAMPLES / "gather_attention.py", "--fail-below", "1000")
    assert slow.exit_code == 4, slow.stderr
    assert "1000.0x" in slow.stdout


@pytest.mark.parametrize(
    ("target", "options", "text"),
    [
        ("nowhere.py", {}, "nowhere.py"),
        ("examples/triton_attention.py", {}, "GPU"),
        (None, {}, "--base"),
        ("examples/gather_attention.py", {"sparsities": [1.5]}, "--sparsity"),
        ("examples/gather_attention.py", {"contexts": [0]}, "--contexts"),
        ("examples/gather_attention.py", {"against": ["nope"]}, "nope"),
        (
            "examples/gather_attention.py",
            {"problem": AttentionProblem("cpu", "float32", 1, 4, 3, 16, 0, 16, 16)},
            "--kv-heads",
        ),
        (
            "examples/gather_attention.py",
            {"problem": AttentionProblem("cpu", "int3", 1, 4, 2, 16, 0, 16, 16)},
            "int3",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_line(target, options, text, tmp_path):
    with pytest.raises(errors.CompareError, match=text):
        run(target and str(ROOT / target), tmp_path, **options)


def test_an_interpreter_that_does_not_work_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(compare_run, "interpreter_refusal", lambda: "too old")
    with pytest.raises(errors.CompareError, match="TRITON_INTERPRET=1: too old"):
        run(str(ROOT / "examples/triton_attention.py"), tmp_path)


def test_beside_other_work_nothing_is_judged(tmp_path, monkeypatch):
    """Other processes use both cores all the time, and waiting for quiet is over."""
    monkeypatch.delenv(load.LIMIT_VARIABLE)
    monkeypatch.setattr(load, "read_counters", lambda: load.Counters(time.monotonic(), 0.0, 0.0, 2, 2))
    monkeypatch.setattr(load.PATIENCE, "left_s", 0.0)
    common = ["--contexts", "512", "--sparsity", "0.5", "--block", "16", "--head-dim", "16", "--rounds", "30"]
    places = ["--device", "cpu", "--against", "dense", "--results", tmp_path, "--figures", tmp_path]
    arguments = ["compare", EXAMPLES / "gather_attention.py", *common, *places]
    unjudged = CliRunner().invoke(app, [*map(str, arguments), "--fail-below", "1e-9"])
    assert unjudged.exit_code == 5, unjudged.output
    assert "this machine is busy: other processes used" in unjudged.stderr
    assert "gather_attention      disturbed: other processes used" in unjudged.stdout
    assert (
        "context 512, 50% of the blocks to be skipped: not judged, since the machine was busy: other processes used"
        in unjudged.stdout
    )
    assert "x [" not in unjudged.stdout  # no speed-up is shown
    assert not Run(tmp_path / "compare").table("samples").empty  # the raw times are kept
    assert CliRunner().invoke(app, [*map(str, arguments)]).exit_code == 0  # the kernel is right
