"""Figure 4: one row of panels per trained gate, and one for every method."""

from matplotlib.colors import to_hex

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


def test_every_panel_names_its_text_and_no_two_entries_look_alike(collect):
    """Gates and settings of one method once had equal colors and markers."""
    frame = collect("fig4")
    fig = fig4.draw(frame)
    for ax in fig.axes[::2]:
        assert any(f" on {corpus}" in ax.get_title() for corpus in frame.corpus.unique())
    looks = [(to_hex(handle.get_color()), handle.get_marker()) for handle in fig.legends[0].legend_handles]
    assert len(set(looks)) == len(looks) > 5
