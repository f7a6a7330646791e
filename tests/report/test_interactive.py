"""Charts of the report: each mark has its numbers in words, keys reach it, and places follow the scale."""

import re
from html import unescape

import pandas as pd
import pytest

from seerbench.artefacts import chart, colors
from seerbench.report import interactive


@pytest.fixture(scope="module")
def figure():
    """Return the HTML of a chart with two panels, two lines of one method and a line of the paper."""
    points = pd.DataFrame(
        [
            ("8k", "measured", "SeerAttention (v1)", "seer", "50% requested", 1.5, 1.4, 1.6, 0.01, 0.005, 0.02),
            ("8k", "measured", "SeerAttention (v1)", "seer", "", 3.0, 2.9, 3.1, 0.1, 0.08, 0.12),
            ("8k", "measured", "SeerAttention <v2>", "seer", "", 3.0, 2.9, 3.1, 0.05, 0.04, 0.06),
            ("4k", "paper", "MoA: paper", "moa", "", 2.0, None, None, -0.01, None, None),
        ],
        columns=chart.POINTS,
    )
    return interactive.html(chart.Chart(chart.SPEED_UP, chart.LOSS, "Right is faster.", points), "Loss & speed")


def test_each_mark_says_its_numbers(figure):
    said = [unescape(text) for text in re.findall(r'class="point" role="img" aria-label="([^"]*)"', figure)]
    assert said[0] == (
        "SeerAttention (v1): 50% requested; 1.5x dense [1.4, 1.6]; loss +0.010 [+0.005, +0.020] nats per token"
    )
    assert len(said) == 4
    titles = [unescape(text) for text in re.findall("<title>([^<]*)</title>", figure)]
    assert titles == said  # what a browser shows without JavaScript
    assert "<v2>" not in figure


def test_every_panel_can_be_reached_with_the_keyboard(figure):
    assert figure.count('<svg viewBox="0 0 640 400" tabindex="0"') == figure.count("<option>") == 2
    assert figure.count('<button type="button" aria-pressed="true"') == 3
    assert 'aria-live="polite"' in figure


def test_lines_of_one_method_differ_in_color(figure):
    """Gates of SeerAttention once had equal entries in the legend."""
    inks = re.findall(r'<i style="background:(#\w+)">', figure)
    assert len(set(inks)) == 3


def test_a_line_of_the_paper_takes_no_shade_from_this_runs():
    points = pd.DataFrame({"name": ["SeerAttention", "SeerAttention: paper"], "method": "seer"})
    inks = interactive._inks(points.assign(source=["measured", "paper"]))
    assert set(inks.values()) == {colors.color("seer")}


def test_the_papers_marks_are_hollow(figure):
    assert figure.count("stroke-dasharray") == 1
    assert figure.count('fill="#fff" stroke=') == 1


def test_places_follow_the_scale():
    values = pd.DataFrame({"y": [-0.03, 0.0, 0.003, 1.0]})
    scale = interactive._Scale(chart.LOSS, values, 0.0, 1.0)
    places = [scale(value) for value in (-0.03, -0.003, 0.0, 0.003, 0.03, 0.3)]
    assert places == sorted(places)
    assert places[5] - places[4] == pytest.approx(places[4] - places[3])  # equal steps per factor of ten
    assert places[3] - places[2] == pytest.approx(places[2] - places[1])  # the same on both sides of zero
    assert 0 in scale.ticks()
    assert scale(100.0) == 1.0  # beyond the axis, at its end
