"""Figure 5: the stages of SeerAttention, the controls left out, and a run in which everything was refused."""

import importlib

import pytest
from synthetic_rows import write_timings

from seerbench.artefacts import fig5


def test_gate_and_top_k_are_drawn_apart_where_they_were_timed_apart(collect):
    frame = collect("fig5")
    seer = frame[(frame.method == "seer") & (frame.panel == fig5.BREAKDOWN)]
    assert set(seer.stage) == {"score", "select", "attend", "total"}
    assert (seer.context == 4096).all()
    by_stage = seer.groupby("stage").y.sum()
    assert by_stage["score"] + by_stage["select"] + by_stage["attend"] == pytest.approx(by_stage["total"], rel=0.1)


def test_each_bar_says_its_method_and_the_share_of_choosing(collect):
    """At long contexts choosing takes too little time to be seen in a bar."""
    frame = collect("fig5")
    ax = fig5.draw(frame).axes[0]
    bars = frame[(frame.method == "seer") & (frame.panel == fig5.BREAKDOWN)]
    names = [text.get_text() for text in ax.get_xticklabels() if "%" in text.get_text()]
    assert len(names) == bars.x.nunique()
    assert all(name.startswith("SeerAttention, ") for name in names)
    times = bars[bars.x == bars.x.min()].set_index("stage").y
    share = (times["score"] + times["select"]) / times["total"]
    assert ax.texts[0].get_text() == f"{share:.1%}"


@pytest.mark.parametrize("name", ["fig5", "fig6"])
def test_everything_refused_is_still_a_figure(name, collect, tmp_path):
    methods = [("dense", None, {"attend": 1.0}, 1.0), ("seer", 0.5, {"total": 1.0}, 1.0)]
    write_timings(tmp_path, "methods", 1024, methods, {"seer": "no gates", "dense": "no compiler"})
    frame = collect(name, tmp_path)
    assert "no gates" in set(frame.reason)
    assert importlib.import_module(f"seerbench.artefacts.{name}").draw(frame).axes
