"""The figure of what sparse decoding costs: its numbers, its references, what is refused."""

import numpy as np
import pandas as pd
import pytest
from synthetic_rows import origin

from seerbench.artefacts import decode_quality
from seerbench.artefacts.paper_numbers import paper_values
from seerbench.rows.store import Run, write_rows

LOSS, SCORE = "loss, tiny on books, 1k", "mean of 2 tasks (decode-ruler), tiny on books, 1k"


def test_losses_are_paired_with_dense_decoding_after_a_dense_prefill(collect):
    frame = collect("decode_quality")
    losses = frame[frame.panel == LOSS].set_index(["prefill", "method", "budget"]).sort_index()
    for method, budget, loss in (("seer-r", 256, 0.25), ("seer-r", 512, 0.125), ("quest", 256, 0.25)):
        line = losses.loc[("dense", method, budget)]
        assert line.y == pytest.approx(loss * 1.02)  # documents differ in what they lose by 0 to 4%
        assert line.low < line.y < line.high < line.low + 0.03
        assert line.x == budget + 128
    dense = losses.loc[("dense", "dense", np.nan)]
    assert (dense.y, dense.low, dense.high) == (0, 0, 0)
    assert np.isnan(dense.x)
    after = losses.loc[("streaming", "quest", 256)]
    assert after.series == "Quest, blocks of 64, after StreamingLLM 50%"
    assert after.y == pytest.approx(losses.loc[("dense", "quest", 256)].y)


def test_scores_are_means_over_tasks_and_refused_where_one_is_missing(collect):
    frame = collect("decode_quality")
    scores = frame[frame.panel == SCORE]
    refused = scores[scores.method == "quest"]
    assert set(zip(refused.status, refused.reason)) == {("refused", "too long")}
    assert refused.y.isna().all()
    measured = scores[(scores.method == "seer-r")].set_index("budget").y
    assert measured[256] == pytest.approx(100 * (0.75 - 0.25))
    threshold = scores[scores.threshold.notna()]
    assert threshold.y.item() == pytest.approx(100 * (0.75 - 64 / 1024))
    assert threshold.series.item() == "SeerAttention-R (decode:r), blocks of 64, threshold"


def test_every_panel_has_its_lines_and_dense_is_horizontal(collect):
    frame = collect("decode_quality")
    fig = decode_quality.draw(frame)
    panels = [ax for ax in fig.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == [LOSS, SCORE]
    for ax, dense in zip(panels, (0, 75)):
        names = {line.get_label(): line for line in ax.lines}
        assert set(names["Dense"].get_ydata()) == {dense}
        assert len(names["SeerAttention-R (decode:r), blocks of 64"].get_xdata()) == 2
    assert "refused (too long)" in fig.get_supxlabel()
    sparse = [line for line in panels[0].lines if "after StreamingLLM" in line.get_label()]
    assert [line.get_markerfacecolor() for line in sparse] == ["white"]


def test_without_dense_decoding_a_loss_says_what_is_missing(run_dir, tmp_path):
    rows = pd.read_parquet(run_dir / "perplexity" / "decode.parquet")
    rows = rows[(rows.decode != "dense") | (rows.document == "none")].astype(object)
    kept = rows.where(rows.notna(), None).to_dict("records")
    write_rows(tmp_path / "perplexity" / "decode.parquet", "perplexity", kept, origin("decode"))
    frame = decode_quality.collect(Run(tmp_path), paper_values())
    assert set(frame.reason) == {decode_quality.NO_REFERENCE}
    assert decode_quality.NO_REFERENCE in " ".join(decode_quality.draw(frame).get_supxlabel().split())
