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
        ("oracle", 0.9, stages | {"plan": 7.0, "total": 8.0}, 123.4),
        ("random", 0.9, stages, 1.0),
    ]
    for context in (1024, 2048):
        write_timings(tmp_path, "methods", context, timed, {"flash-attn": "not installed; pip install it"})
    return tmp_path


def test_controls_and_refused_methods_are_in_the_table(with_controls, collect):
    frame = collect("methods", with_controls)
    cells = methods.render(frame)
    (oracle,) = cells[(cells.method == "Oracle by maximum") & (cells.context == "2k")].to_dict("records")
    assert float(oracle["plan, ms"]) == pytest.approx(7, rel=0.2)
    assert oracle["skipped"] == "89%"
    assert oracle[methods.PEAK] == "123"
    assert float(oracle[methods.OVER_DENSE].split("x")[0]) == pytest.approx(6 / 8, rel=0.1)
    assert "x cuDNN [" in oracle[methods.OVER_FASTEST]
    refused = cells[cells.method == "FlashAttention-2, its package"]
    assert refused[methods.BOTH].tolist() == ["refused, note 1"] * 2
    assert (cells.method == "FlashAttention-2").sum() == 2  # once per context
    assert any("pip install it" in note for note in table_format.notes(frame))


@pytest.mark.parametrize("name", ["fig5", "fig6"])
def test_controls_are_in_no_figure_of_speed(name, with_controls, collect):
    drawn = set(collect(name, with_controls).method)
    assert "seer" in drawn
    assert not {"oracle", "random"} & drawn


def test_each_cell_of_a_time_is_one_number(with_controls, collect):
    """A cell once held up to four numbers: "0.0287 + 0.112; 0.357 (0.51)"."""
    cells = methods.render(collect("methods", with_controls))
    assert list(cells)[3:] == methods.TABLE
    seer = cells[cells.method == "SeerAttention"]
    assert len(seer) == 4  # two sparsities at two contexts
    for column, ms in zip(methods.STAGE_COLUMNS.values(), (0.5, 1.0, 1.5)):
        assert seer[column].astype(float).tolist() == pytest.approx([ms] * 4, rel=0.2)
