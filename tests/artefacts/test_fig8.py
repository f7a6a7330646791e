"""Figure 8: latency and memory, and a run that did not count memory."""

from seerbench.artefacts import fig8


def test_memory_that_was_not_counted_is_said(collect):
    frame = collect("fig8")
    assert set(frame.panel) == {fig8.LATENCY, fig8.MEMORY}
    without = frame[(frame.panel == fig8.LATENCY) | frame.y.isna()]
    texts = [text.get_text() for text in fig8.draw(without).axes[1].texts]
    assert any("memory" in text for text in texts)


def test_the_dense_kernel_has_its_name(collect):
    """On a GPU torch's dense kernel is FlashAttention-2."""
    frame = collect("fig8")
    frame.loc[frame.method == "dense", "implementation"] = fig8.FLASH
    names = {text.get_text() for text in fig8.draw(frame).axes[0].get_legend().get_texts()}
    assert "FlashAttention-2" in names
    assert "Dense" not in names
