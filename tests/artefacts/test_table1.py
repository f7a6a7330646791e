"""Table 1: the order of its lines, and its note on MoA's plans."""

import itertools
import math

from seerbench.artefacts import table1, table_format


def test_lines_are_ordered_by_method_with_the_papers_beside_this_runs(collect):
    cells = table1.render(collect("table1"))
    families = [name.split(" (")[0] for name in cells.method]
    assert len(list(itertools.groupby(families))) == len(set(families))  # each method once
    seer = cells[cells.method.str.startswith("SeerAttention")]
    assert seer.source.tolist() == sorted(seer.source, reverse=True)  # paper, then measured
    measured = list(dict.fromkeys(cells[cells.source == "measured"].method))
    assert measured[:3] == ["Dense", "SeerAttention (long:v1)", "SeerAttention (long:untrained)"]
    paper = cells[(cells.source == "paper") & (cells.method == "MInference")].iloc[0]
    assert paper["perplexity, 16k"] == "10.06 (0.55)"
    assert paper["perplexity, 512"] == "-"
    assert cells[cells.method == "SeerAttention (long:v1)"].iloc[0]["loss, 1k"].startswith("+0.0")


def test_losses_come_before_perplexities(collect):
    """Absolute perplexities of documents hide what skipped blocks change, and once came first."""
    columns = list(table1.render(collect("table1")))
    first = next(place for place, name in enumerate(columns) if name.startswith("perplexity"))
    assert columns[:2] == ["method", "sparsity"]
    assert [name for name in columns[:first] if name.startswith("loss")] == [
        name for name in columns if name.startswith("loss")
    ]


def test_the_papers_losses_stand_in_the_columns_of_this_run(collect):
    """At a context that both have, they share a column; the paper's follow from its own dense model."""
    frame = collect("table1")
    here = frame.source == "measured"
    frame.loc[here & (frame.context == 1024), "context"] = 8192
    cells = table1.render(frame)
    paper = cells[(cells.source == "paper") & (cells.method == "SeerAttention")].set_index("sparsity")
    assert paper["loss, 8k"]["0.90"] == f"{math.log(10.75 / 10.03):+.3f}"


def test_a_sparser_plan_of_moa_that_is_better_has_a_note(collect):
    frame = collect("table1")
    without = table1.remarks(frame)  # The synthetic loss of MoA grows with sparsity.
    denser = (frame.method == "moa") & (frame.source == "measured")
    denser &= (frame.sparsity_requested == 0.4) & (frame.context == 1024)
    frame.loc[denser, ["delta", "delta_low", "delta_high"]] = 0.9, 0.8, 1.0
    (note,) = table1.remarks(frame)[len(without) :]
    for text in ("MoA at 40%", "1k", "+0.900"):
        assert text in note


def test_a_refused_cell_names_the_same_note_in_both_halves(collect):
    """The paper's own reason (out of memory) is note 1, and the columns of losses have no lines of the paper."""
    frame = collect("table1")
    off = (frame.method == "seer") & (frame.gate == "long:v1") & (frame.context == 1024)
    off &= frame.sparsity_requested == 0.4
    frame.loc[off, ["status", "reason"]] = "refused", "skips 50.0% where 40% was requested"
    cells = table1.render(frame)
    line = cells[(cells.method == "SeerAttention (long:v1)") & (cells.sparsity == "0.40")].iloc[0]
    assert line["perplexity, 1k"] == line["loss, 1k"]
    number = line["perplexity, 1k"].removeprefix("refused, note ")
    assert f"Note {number}: refused: skips 50.0% where 40% was requested." in table_format.notes(frame)
