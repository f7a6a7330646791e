"""Figure 9: each gate in its panel, dense in both, and the training length."""

from seerbench.artefacts import fig9


def test_gates_are_told_apart_by_their_set(collect):
    frame = collect("fig9")
    seer = frame[frame.method == "seer"]
    assert set(zip(seer.gate, seer.panel)) == {("short:rope", fig9.WITH), ("short:norope", fig9.WITHOUT)}
    assert set(seer.trained_at) == {512}
    assert frame[frame.method == "dense"].panel.isna().all()
