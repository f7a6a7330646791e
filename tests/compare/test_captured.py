"""A kernel is timed on captured workloads, each a cell of its own; a method is not."""

import pytest
from typer.testing import CliRunner

from compare.kernels import EXAMPLES, METHOD
from seerbench.cli import app
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.kernels import flex_attention
from seerbench.measure import correctness
from seerbench.measure.inputs import captured_from, random_inputs
from seerbench.measure.workloads import Writer
from seerbench.methods.registry import create
from seerbench.rows.store import Run

CASE = AttentionProblem("cpu", "float32", 1, 4, 2, 16, 300, 16, 16)


@pytest.fixture
def captured(tmp_path, monkeypatch):
    """Return a folder with the masks of two methods at 50%, and one of another block size without a request."""
    monkeypatch.setattr(flex_attention, "flex_block_sparse", flex_attention.masked_attention)
    monkeypatch.setattr(correctness, "MAX_CHECKED_CONTEXT", 200)  # the context is longer than a check
    monkeypatch.setattr(correctness, "CHECK_TOKENS", 150)
    q, k, v = random_inputs(CASE, 0)
    writer = Writer(tmp_path / "captured")
    place = writer.inputs("inputs", q, k, v)
    for name, block, requested in (("streaming", 16, 0.5), ("random", 16, 0.5), ("wide", 32, None)):
        mask = create("random", sparsity=0.5, block=block).plan(q, k, LayerContext())
        facts = {"layer": 7, "kv_heads": [0, 1], "mask_kind": "pattern", "source": captured_from("tiny", 300, 256)}
        problem = AttentionProblem.of(q, k, block, block)
        writer.mask(place, problem, mask, name, **facts, method=name, gate=None, requested=requested)
    writer.close({"run_id": "x"})
    return tmp_path / "captured"


def compare(tmp_path, captured, *arguments, target=EXAMPLES / "gather_attention.py"):
    common = ["compare", target, "--masks", captured, "--device", "cpu", "--rounds", 10, "--cap", 0]
    places = ["--results", tmp_path / "rows", "--figures", tmp_path / "figures"]
    return CliRunner().invoke(app, list(map(str, [*common, *arguments, *places])))


def test_every_captured_mask_is_a_cell(tmp_path, captured):
    done = compare(tmp_path, captured)
    assert done.exit_code == 0, done.output
    assert "gather_attention agrees with the float64 reference in all 22 trials" in done.stdout  # two block sizes
    heading = "context 300, 50% of the blocks to be skipped, the mask of random in layer 7 of tiny"
    assert heading in done.stdout
    assert "context 300, the mask of wide in layer 7 of tiny" in done.stdout
    run = Run(tmp_path / "rows" / "compare")
    cells = run.table("cells")
    assert list(cells.cell.unique()) == [
        "kernel-300-layer7-streaming-0.50",
        "kernel-300-layer7-random-0.50",
        "kernel-300-layer7-wide",
    ]
    assert cells.groupby("cell").method.agg(set).eq({"dense", "block_sparse", "gather_attention"}).all()
    assert set(cells.status) == {"measured"}
    assert set(cells.inputs) == {"captured:tiny, beyond the 256 tokens of its training"}
    assert set(cells.block_k[cells.cell.str.endswith("wide")]) == {32}
    digests = cells.groupby("method").source_digest.unique()
    assert digests["gather_attention"] != digests["dense"]
    assert (tmp_path / "figures" / "gather_attention-captured.svg").exists()


def test_contexts_and_sparsities_choose_among_them(tmp_path, captured):
    done = compare(tmp_path, captured, "--sparsity", 0.5, "--against", "dense", "--fail-below", 1000)
    assert done.exit_code == 4, done.output
    assert "wide" not in done.stdout
    assert "the mask of streaming in layer 7 of tiny: " in done.stdout.splitlines()[-2]  # the line of --fail-below
    nothing = compare(tmp_path, captured, "--contexts", "8k")
    assert "there are 0 at 300, 0.5 at 300" in str(nothing.exception)


def test_a_wrong_kernel_is_not_timed(tmp_path, captured):
    done = compare(tmp_path, captured, target=EXAMPLES / "wrong" / "empty_row.py")
    assert done.exit_code == 3
    assert not (tmp_path / "rows").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(["--heads", 8], "the folder has the shapes"), (["--block", 64], "the folder has the shapes")],
)
def test_the_folder_has_the_shapes(tmp_path, captured, arguments, text):
    assert text in str(compare(tmp_path, captured, *arguments).exception)


def test_a_kernel_for_decoding_is_another_thing(tmp_path, captured):
    done = compare(tmp_path, captured, target=EXAMPLES / "decode_gather.py")
    assert "captured workloads are prefills" in str(done.exception)


def test_a_method_plans_for_itself(tmp_path, captured):
    (tmp_path / "method.py").write_text(METHOD.replace("CHANGE", "mask"))
    done = compare(tmp_path, captured, target=tmp_path / "method.py")
    assert "mine is a method, which plans masks of its own" in str(done.exception)
