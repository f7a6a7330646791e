"""Figure 1: it draws the panels that a run has."""

from synthetic_rows import write_timings

from seerbench.artefacts import fig1


def test_missing_panels_have_their_reason(collect, tmp_path):
    methods = [("dense", None, {"attend": 8.0}, 1.0), ("block_sparse", 0.9, {"attend": 1.0}, 1.0)]
    write_timings(tmp_path, "kernel", 1024, methods)
    frame = collect("fig1", tmp_path)
    gaps = frame[frame.status == "missing"]
    assert gaps.panel.tolist() == [fig1.LOSS, fig1.QUALITY]
    assert gaps.reason.str.contains("seerbench ").all()  # the step that measures them
    assert fig1.draw(frame).axes
    assert frame[(frame.panel == fig1.SPEED) & (frame.source == "paper")].y.tolist() == [5.67]


def test_points_timed_as_the_authors_did_are_set_apart(collect, tmp_path):
    for sweep, context, ms in (("kernel", 4096, 1.0), ("authors_kernel", 1024, 2.0), ("authors_kernel", 4096, 4.0)):
        methods = [("dense", None, {"attend": 8.0}, 1.0), ("block_sparse", 0.9, {"attend": ms}, 1.0)]
        write_timings(tmp_path, sweep, context, methods)
    frame = collect("fig1", tmp_path)
    apart = frame[frame.series == fig1.AUTHORS]
    assert apart.context.tolist() == [1024, 4096]
    assert apart.y.round().tolist() == [4, 2]
    speed = fig1.draw(frame).axes[2]
    lines = {line.get_label(): line.get_ydata() for line in speed.lines}
    assert lines[f"{fig1.AUTHORS}, 4k"].round().tolist() == [2]
    assert lines["Block-sparse kernel"].round().tolist() == [8]
    assert any(fig1.AUTHORS_REMARK[:40] in text.get_text().replace("\n", " ") for text in speed.figure.texts)


def test_the_dense_fine_tuning_is_drawn_in_black(collect):
    loss, *_ = fig1.draw(collect("fig1")).axes
    lines = {line.get_label(): line.get_color() for line in loss.lines}
    assert [color for label, color in lines.items() if "dense" in label] == ["black"]
    assert len(lines) == 3


def test_losses_are_drawn_against_dense_at_the_same_step(collect):
    """The difficulty of a batch moves all recipes alike, and once hid how they differ."""
    frame = collect("fig1")
    rows = frame[(frame.panel == fig1.LOSS) & (frame.status == "measured")]
    dense = rows[rows.recipe == "yarn"].set_index("x").y
    joint = rows[rows.recipe == "joint"]
    assert (joint.delta - (joint.y - joint.x.map(dense))).abs().max() < 1e-12
    loss, *_ = fig1.draw(frame).axes
    (line,) = [line for line in loss.lines if line.get_label() == joint.series.iloc[0]]
    assert set(line.get_ydata()) == set(joint[joint.series == joint.series.iloc[0]].delta)
