"""Figure 4: one row of panels per trained gate, and one for every method."""

from seerbench.artefacts import fig4


def test_an_untrained_gate_has_no_panel(collect):
    frame = collect("fig4")
    assert not frame.gate.dropna().str.contains("untrained").any()
    gate_panels = set(frame.panel) - {fig4.METHODS}
    assert len(gate_panels) == 1
    dense = frame[(frame.method == "dense") & frame.panel.isin(gate_panels)]
    assert (dense.x == 0).all()
    assert (frame[frame.panel == fig4.METHODS].context == 2048).all()
    assert len(fig4.draw(frame).axes) == 4
