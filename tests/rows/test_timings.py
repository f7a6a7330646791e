"""Disturbed and impossible cells are set apart, with their reason, and everything else stays as it is."""

import ast

import numpy as np
import pandas as pd
import pytest
from synthetic_rows import timings as made

from seerbench.paths import PUBLISHED, ROOT
from seerbench.rows.store import Run, to_table
from seerbench.rows.timings import impossible, judged, timings

STAGES = {"plan": 2.0, "attend": 8.0, "total": 10.0}


def as_tables(parts):
    """Return (cells, samples) with all columns of the schema."""
    return tuple(
        to_table(name, [row for part in parts for row in part[place]]).to_pandas()
        for place, name in enumerate(("cells", "samples"))
    )


def sweep(*cells, sweep="methods", methods=None):
    """Return (cells, samples) of one sweep: pairs of a context and a factor on the times of the method `seer`."""
    parts = []
    for context, factor in cells:
        times = {stage: ms * factor for stage, ms in STAGES.items()}
        timed = [("dense", None, {"attend": context / 100}, 1.0), *(methods or [("seer", 0.5, times, 1.0)])]
        parts.append(made("run", sweep, context, timed))
    return as_tables(parts)


def reasons(cells, samples):
    """Return (method, context) -> reason of the impossible ones."""
    found = impossible(cells, samples)
    return {(row.method, row.context): found[row.Index] for row in cells.itertuples() if found[row.Index]}


def test_ordinary_rows_pass_unchanged():
    cells, samples = sweep((1024, 1), (2048, 4))
    same_cells, same_samples = judged(cells, samples)
    pd.testing.assert_frame_equal(same_cells, cells)
    assert len(same_samples) == len(samples)


@pytest.mark.parametrize("name", ["cpu-xeon-2-cores", "h100-speed"])
def test_nothing_published_is_impossible(name):
    cells, _ = timings(Run(PUBLISHED / name))
    assert len(cells) > 30
    assert cells[cells.status == "disturbed"].empty


def test_samples_of_a_disturbed_cell_are_left_out_and_its_row_stays():
    cells, samples = sweep((1024, 1), (2048, 4))
    seer = (cells.method == "seer") & (cells.context == 1024)
    cells.loc[seer, ["status", "reason"]] = ["disturbed", "other processes used 1.7 of 2 cores"]
    marked, kept = judged(cells, samples)
    assert len(marked) == len(cells)
    assert marked[seer].reason.tolist() == ["other processes used 1.7 of 2 cores"]
    left = kept.groupby(["method", "cell"]).size()
    assert len(left) == 3
    assert len(kept) == len(samples) - 3 * 12
    assert len(samples) == 2 * (3 + 1) * 12


@pytest.mark.parametrize("ratio", [1.2, 2.0, 10.0])
def test_a_method_that_is_slower_at_half_the_length_is_impossible(ratio):
    found = reasons(*sweep((2048, 4 * ratio), (4096, 4)))
    assert list(found) == [("seer", 2048)]  # the shorter one: other work makes a cell slower, never faster
    assert "ms at 4096 tokens" in found["seer", 2048]


def test_a_method_that_takes_as_long_at_half_the_length_is_possible():
    assert reasons(*sweep((2048, 4), (4096, 4))) == {}


def test_a_shorter_context_may_be_slower_if_more_blocks_are_computed():
    cells, samples = sweep((2048, 8), (4096, 4))
    cells.loc[(cells.method == "seer") & (cells.context == 4096), "sparsity_realised"] = 0.95
    assert reasons(cells, samples) == {}


@pytest.mark.parametrize("column", ["implementation", "mask", "gate", "inputs_model", "block_k"])
def test_only_cells_that_differ_in_the_context_alone_are_compared(column):
    cells, samples = sweep((2048, 8), (4096, 4))
    other = (cells.method == "seer") & (cells.context == 4096)
    cells[column] = cells[column].astype(object)
    cells.loc[other, column] = 32 if column == "block_k" else "other"
    assert reasons(cells, samples) == {}


@pytest.mark.parametrize("sweep_name", ["methods", "training_kernel", "ttft", "kernel"])
def test_every_sweep_is_checked(sweep_name):
    stage = {"training_kernel": "forward", "ttft": "ttft", "kernel": "attend"}.get(sweep_name, "total")
    parts = [
        made("run", sweep_name, context, [("dense", None, {stage: ms}, 1.0)])
        for context, ms in ((1024, 850), (2048, 90))
    ]
    cells, samples = as_tables(parts)
    assert list(reasons(cells, samples)) == [("dense", 1024)]


@pytest.mark.parametrize(("total", "flagged"), [(10, False), (17, False), (6, False), (30, True), (4, True)])
def test_parts_that_add_up_to_something_else_are_impossible(total, flagged):
    times = {"plan": 2.0, "attend": 8.0, "total": float(total)}
    found = reasons(*sweep((1024, 1), methods=[("seer", 0.5, times, 1.0)]))
    assert list(found) == [("seer", 1024)] * flagged


@pytest.mark.parametrize(("attend", "flagged"), [(8, False), (9.5, False), (14, True)])
def test_parts_of_a_forward_cannot_take_longer_than_it(attend, flagged):
    times = {"plan": 0.4, "attend": float(attend), "ttft": 10.0}
    found = reasons(*sweep((1024, 1), sweep="ttft", methods=[("seer", 0.5, times, 1.0)]))
    assert list(found) == [("seer", 1024)] * flagged


@pytest.mark.parametrize(("spread", "flagged"), [(1.2, False), (20.0, True)])
def test_rounds_that_differ_by_several_times_are_impossible(spread, flagged):
    cells, samples = sweep((1024, 1))
    mine = (samples.method == "seer") & (samples["round"] % 2 == 0)
    samples.loc[mine, "ms"] *= spread
    found = reasons(cells, samples)
    assert list(found) == [("seer", 1024)] * flagged
    assert all("spread" in reason for reason in found.values())


def test_cells_that_were_not_measured_have_no_second_reason():
    cells, samples = sweep((2048, 40), (4096, 4))
    for status in ("refused", "failed", "out_of_memory", "disturbed"):
        cells.loc[cells.method == "seer", "status"] = status
        assert reasons(cells, samples) == {}


def test_empty_tables_are_no_problem():
    cells, samples = sweep((1024, 1))
    for rows in (cells[:0], cells):
        marked, kept = judged(rows, samples[:0])
        assert len(marked) == len(rows)
        assert kept.empty
    assert np.all(marked.status == "measured")


def test_no_other_module_reads_samples():
    """A module that read the table itself could forget to leave disturbed cells out."""
    allowed = {"seerbench/rows/timings.py", "seerbench/report/notebooks.py"}  # notebooks.py counts rows
    found = set()
    for path in [*ROOT.glob("seerbench/**/*.py"), *ROOT.glob("notebooks/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            reads = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "table"
            if reads and any(getattr(each, "value", None) == "samples" for each in node.args):
                found.add(path.relative_to(ROOT).as_posix())
    assert found <= allowed, found - allowed
