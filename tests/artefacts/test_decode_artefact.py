"""The figure of decoding: its speed-ups, panels and bound."""

import numpy as np
import pandas as pd
import pytest

from seerbench.artefacts import decode


def test_speed_ups_are_those_of_each_batch(collect):
    frame = collect("decode")
    assert list(dict.fromkeys(frame.panel)) == ["batch 1", "batch 8"]
    assert set(frame.method) == {"seer-r", "quest"}
    key = ["panel", "context", "method", "stage", "sparsity_requested"]
    rows = frame[frame.status == "measured"].set_index(key).sort_index()
    for batch, context, share in ((1, 1024, 0.5), (8, 1024, 0.9), (8, 4096, 0.5)):
        ms = batch * context / 4096
        attend = ms * (1 - share) + 0.01
        for stage, time in (("attend", attend), ("total", attend + 0.05)):
            found = rows.loc[(f"batch {batch}", context, "seer-r", stage, share)]
            assert found.y == pytest.approx(ms / time, rel=0.05)
            assert found.low <= found.y <= found.high
            assert found.base == "dense"


def test_a_refused_method_has_one_line_with_its_reason(collect):
    frame = collect("decode")
    refused = frame[frame.status == "refused"]
    assert refused.reason.eq("no memory was left").all()
    assert set(zip(refused.panel, refused.context, refused.method)) == {("batch 8", 4096, "quest")}
    assert len(refused) == 2  # one per sparsity
    assert "no memory was left" in decode.draw(frame).get_supxlabel()


def test_every_batch_and_context_has_a_panel_with_its_bound(collect):
    frame = collect("decode")
    axes = decode.draw(frame).axes
    titles = [ax.get_title() for ax in axes]
    assert titles == [f"batch {batch}, context {size}" for batch in (1, 8) for size in ("1k", "4k")]
    for ax in axes:
        (bound,) = [line for line in ax.lines if line.get_linestyle() == "--"]
        x, y = bound.get_data()
        assert np.allclose(y, 1 / (1 - x))


def test_batches_are_in_the_order_of_their_sizes(collect):
    frame = collect("decode")
    many = pd.concat([frame, frame[frame.panel == "batch 8"].assign(panel="batch 16")])
    assert [ax.get_title() for ax in decode.draw(many).axes][::2] == [f"batch {n}, context 1k" for n in (1, 8, 16)]
