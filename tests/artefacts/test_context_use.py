"""The figure of context: each experiment has its own line, and gains are against its shortest window."""

import pytest


def test_gains_are_paired_with_the_shortest_window(collect):
    """The synthetic loss falls by 0.05 nats per doubling of the context, equally in every document."""
    frame = collect("context_use").set_index(["series", "context"])
    assert set(frame.index) == {
        *(("use", context) for context in (512, 2048)),
        *(("use_yarn", context) for context in (512, 2048, 8192)),
    }
    for doublings, line in zip((0, 2, 0, 2, 4), frame.itertuples()):
        for number in (line.delta, line.delta_low, line.delta_high):
            assert number == pytest.approx(-0.05 * doublings)
        assert line.low < line.y < line.high  # documents differ
    assert frame.recipe["use_yarn", 8192] == "yarn"
