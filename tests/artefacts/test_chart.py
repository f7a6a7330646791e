"""Charts: their points are the numbers of the frame, and long tables have one."""

import importlib

import pytest

from seerbench.artefacts import ARTEFACTS, chart, losses, table2
from seerbench.artefacts.chart import POINTS

CHARTS = ("pareto", "table1", "losses", "methods", "table2", "table4", "recall", "ruler")


@pytest.mark.parametrize("name", CHARTS)
def test_points_are_numbers_of_the_frame(name, collect):
    frame = collect(name)
    points = importlib.import_module(f"seerbench.artefacts.{name}").chart(frame).points
    assert list(points) == POINTS
    assert len(points)
    assert points[["panel", "name", "method", "x", "y"]].notna().all(axis=None)
    column = "delta" if name == "table1" else "y" if name == "pareto" else "value"
    assert set(points.y) <= set(frame[column])


def test_every_table_that_can_be_long_has_a_chart():
    """These have one line per method and quantity; the others have a fixed, small number of lines."""
    short = {"table3", "ablation", "dilution"}
    assert {name for name, entry in ARTEFACTS.items() if entry.kind == "table"} - short <= set(CHARTS)


def test_the_papers_losses_are_beside_those_of_every_context(collect):
    """Paper and run once shared no column where their contexts differ, although their losses compare."""
    points = losses.chart(collect("losses")).points
    for _, panel in points.groupby("panel"):
        assert set(panel.source) == {"measured", "paper"}
        assert panel.name[panel.source == "paper"].str.contains("paper, 8k").all()


def test_dense_attention_is_in_the_panels_of_both_protocols(collect):
    frame = collect("table2")
    points = table2.chart(frame).points
    dense = points[points.method == "dense"]
    assert set(dense.panel) == set(points.panel)
    assert (dense.x == 0).all()


def test_a_point_is_written_with_its_interval():
    assert chart.LOSS.text(0.1, 0.08, 0.12) == "loss +0.100 [+0.080, +0.120] nats per token"
    assert chart.SPEED_UP.text(2.0, 1.9, 2.1) == "2x dense [1.9, 2.1]"
    assert chart.SPEED_UP.text(2.0, float("nan"), float("nan")) == "2x dense"
