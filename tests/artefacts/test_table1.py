"""Table 1: the order of its lines, and its note on MoA's plans."""

from seerbench.artefacts import table1


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
