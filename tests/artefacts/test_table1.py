"""Table 1: the order of its lines, and its note on MoA's plans."""

from seerbench.artefacts import table1, table_format


def test_lines_are_ordered_by_source_method_and_gate(collect):
    cells = table1.render(collect("table1"))
    assert cells.source.tolist() == sorted(cells.source, reverse=True)  # paper, then measured
    measured = list(dict.fromkeys(cells[cells.source == "measured"].method))
    assert measured[:3] == ["Dense", "SeerAttention (long:v1)", "SeerAttention (long:untrained)"]
    paper = cells[(cells.source == "paper") & (cells.method == "MInference")].iloc[0]
    assert paper["16k"] == "10.06 (0.55)"
    assert paper["512"] == "-"
    assert cells[cells.method == "SeerAttention (long:v1)"].iloc[0]["delta NLL, 1k"].startswith("+0.0")


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
    assert line["1k"] == line["delta NLL, 1k"]
    number = line["1k"].removeprefix("refused, note ")
    assert f"Note {number}: refused: skips 50.0% where 40% was requested." in table_format.notes(frame)
