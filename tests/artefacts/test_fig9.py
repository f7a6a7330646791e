"""Figure 9: each gate in its panel, dense in both, and the training length."""

from seerbench.artefacts import fig9


def test_gates_are_told_apart_by_their_set(collect):
    frame = collect("fig9")
    seer = frame[frame.method == "seer"]
    assert set(zip(seer.gate, seer.panel)) == {("short:rope", fig9.WITH), ("short:norope", fig9.WITHOUT)}
    assert set(seer.trained_at) == {512}
    assert frame[frame.method == "dense"].panel.isna().all()


def test_the_paired_losses_are_drawn(collect):
    """Intervals of the perplexities over documents are far wider than the effect of RoPE."""
    frame = collect("fig9")
    seer = frame[(frame.method == "seer") & (frame.panel == fig9.WITH)]
    left, _ = fig9.draw(frame).axes
    drawn = {value for line in left.lines if "skipped" in str(line.get_label()) for value in line.get_ydata()}
    assert drawn == set(seer.delta)
