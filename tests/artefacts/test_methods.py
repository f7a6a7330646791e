"""The table of methods has the oracle and random blocks, which no figure of speed has."""

import pytest
from synthetic_rows import write_timings

from seerbench.artefacts import methods, table_format


@pytest.fixture
def with_controls(tmp_path):
    stages = {"plan": 0.5, "attend": 1.0, "total": 1.5}
    timed = [
        ("fa2", None, {"attend": 6.0}, 1.0),
        ("cudnn", None, {"attend": 3.0}, 1.0),
        ("flash-attn", None, {}, 1.0),
        *(("seer", sparsity, stages, 1.0) for sparsity in (0.5, 0.9)),
        ("oracle", 0.9, stages | {"plan": 7.0, "total": 8.0}, 1.0),
        ("random", 0.9, stages, 1.0),
    ]
    for context in (1024, 2048):
        write_timings(tmp_path, "methods", context, timed, {"flash-attn": "not installed; pip install it"})
    return tmp_path


def test_controls_and_refused_methods_are_in_the_table(with_controls, collect):
    frame = collect("methods", with_controls)
    cells = methods.render(frame)
    times, speedups = cells[cells.method == "Oracle by maximum"]["2k"]
    assert float(times.split(" + ")[0]) == pytest.approx(7, rel=0.2)
    assert times.endswith("(0.89)")
    assert float(speedups.split("x; ")[0]) == pytest.approx(6 / 8, rel=0.1)
    assert speedups.endswith("x cuDNN")
    assert cells[cells.method == "FlashAttention-2, its package"]["1k"].tolist() == ["refused, note 1"]
    assert (cells.method == "FlashAttention-2").sum() == 2  # times and speed-ups, once for all cells
    assert any("pip install it" in note for note in table_format.notes(frame))


@pytest.mark.parametrize("name", ["fig5", "fig6"])
def test_controls_are_in_no_figure_of_speed(name, with_controls, collect):
    drawn = set(collect(name, with_controls).method)
    assert "seer" in drawn
    assert not {"oracle", "random"} & drawn
