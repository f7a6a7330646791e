"""Figure 8: latency and memory, and a run that did not count memory."""

from seerbench.artefacts import fig8


def test_memory_that_was_not_counted_is_said(collect):
    frame = collect("fig8")
    assert set(frame.panel) == {fig8.LATENCY, fig8.MEMORY}
    without = frame[(frame.panel == fig8.LATENCY) | frame.y.isna()]
    texts = [text.get_text() for text in fig8.draw(without).axes[1].texts]
    assert any("memory" in text for text in texts)
