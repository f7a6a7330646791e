"""Figure 6: methods that were refused, and methods that nobody knows."""

from synthetic_rows import write_timings

from seerbench.artefacts import fig6, style


def test_a_refused_method_has_one_reason(collect):
    (sentence,) = style.unmeasured(collect("fig6"))
    for text in ("MInference at 1k", "head_dim 32 is not 128"):
        assert text in sentence


def test_a_method_that_nobody_knows_is_drawn(collect, tmp_path):
    methods = [
        ("dense", None, {"attend": 2.0, "total": 2.0}, 1.0),
        ("mine", 0.5, {"total": 1.0, "attend": 0.9}, 1.0),
    ]
    write_timings(tmp_path, "methods", 1024, methods)
    fig = fig6.draw(collect("fig6", tmp_path))
    assert "mine" in {text.get_text() for text in fig.legends[0].get_texts()}
    assert style.image(fig, "png").startswith(b"\x89PNG")


def test_panels_can_be_compared_and_a_label_is_written_once(collect):
    frame = collect("fig6")
    first, *others = fig6.draw(frame).axes
    assert all(ax.get_ylim() == first.get_ylim() for ax in others)
    assert "over Dense" in first.get_title()
    assert frame.label.nunique() == 1  # its two sweeps differ at most in their commits
