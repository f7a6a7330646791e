"""The figure of training budgets: which gates are on one line, the paired change, and what it needs."""

import pytest
from synthetic_rows import DENSE, LOSS, origin, perplexity

from seerbench.artefacts import budget
from seerbench.artefacts.paper_numbers import paper_values
from seerbench.errors import MissingRows
from seerbench.rows.store import Run, write_rows


def test_a_line_holds_the_same_set_at_each_budget(collect):
    """`long` has 8,000 tokens and loses 0.3 s**3, `quarter` 2,000 and 0.4 s**3; block128 differs in its blocks."""
    frame = collect("budget")
    assert set(frame.gate) == {"long:v1", "quarter:v1"}
    line = frame[frame.sparsity_requested == 0.9]
    assert line.x.tolist() == [2000, 8000]
    for entry, loss in zip(line.itertuples(), (0.4, 0.3)):
        assert entry.y == pytest.approx(loss * 0.9**3, abs=0.005)
    short, long = line.itertuples()
    assert short.delta != short.delta  # nothing is below the smallest budget
    assert long.delta == pytest.approx(-0.1 * 0.9**3, abs=0.005)
    assert long.delta_high < 0


def test_the_caption_says_how_the_loss_changes_and_oracles_are_levels(collect, run_dir, tmp_path):
    (tmp_path / "training").symlink_to(run_dir / "training")
    run = origin("perplexity gates")
    cells = [("seer", f"{job}:v1", "post", 0.9, 0.3) for job in ("long", "quarter")]
    cells += [("seer+layer", "long:v1", "post", 0.9, 9.0), ("oracle", None, "none", 0.9, LOSS["oracle"])]
    rows = perplexity(run["run_id"], "gates", [DENSE, *cells], (1024,))
    write_rows(tmp_path / "perplexity" / "gates.parquet", "perplexity", rows, run)
    frame = budget.collect(Run(tmp_path), paper_values())
    (level,) = frame[frame.x.isna()].itertuples()
    assert level.series == "Oracle by maximum"
    (ax,) = budget.draw(frame).axes
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0.002M", "0.008M"]
    words = ax.figure.get_supxlabel()
    assert "v1 at 90%, 0.002M to 0.008M: " in words


def test_one_budget_is_no_figure(run_dir, tmp_path):
    (tmp_path / "training").symlink_to(run_dir / "training")
    run = origin("perplexity gates")
    rows = perplexity(run["run_id"], "gates", [DENSE, ("seer", "long:v1", "post", 0.9, 0.3)], (1024,))
    write_rows(tmp_path / "perplexity" / "gates.parquet", "perplexity", rows, run)
    with pytest.raises(MissingRows, match="two training budgets"):
        budget.collect(Run(tmp_path), paper_values())
