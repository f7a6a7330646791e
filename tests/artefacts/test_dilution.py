"""The table of dilution: look-ups beyond the window, by the rows of the asking block."""

from seerbench.artefacts import dilution


def test_look_ups_beyond_the_window_by_asking_rows(collect):
    frame = collect("dilution")
    value = frame.set_index(["method", "x"]).value
    assert value["seer", 1] == 100
    assert value["seer", 16] == 0  # Answers within a distance of 100 are right, but the window has 299 tokens.
    assert value["dense", 16] == 100
    assert (frame["count"] < 20).all()  # Those within the window do not count.
    assert list(dilution.render(frame).columns[-2:]) == ["1", "16"]
    assert "Every block row is sparse" in dilution.remarks(frame)[0]
