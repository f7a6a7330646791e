"""The table of gates: loss, difference at equal sparsity, look-ups, and the words about oracles and protocols."""

import pytest
from synthetic_rows import DENSE, LOSS, origin, perplexity

from seerbench.artefacts import ablation, table_format
from seerbench.artefacts.paper_numbers import paper_values
from seerbench.rows.store import Run, write_rows


def test_loss_and_look_ups_of_each_gate(collect):
    frame = collect("ablation")
    assert set(frame.gate) == {"long:v1", "block128:v1", "quarter:v1"}
    assert set(frame.metric) == set(ablation.METRICS)
    right = frame[(frame.metric == ablation.LOOKUPS) & (frame.gate == "long:v1")]
    assert 0.8 < right.value.iloc[0] < 1.0  # 0.9 of the synthetic look-ups
    cells = ablation.render(frame)
    assert cells.gate.tolist() == sorted(cells.gate)
    assert "every row of blocks is sparse" in ablation.remarks(frame)[1]
    assert "with the right answer given" in ablation.remarks(frame)[1]


def test_the_difference_to_the_papers_gate_is_at_equal_sparsity(collect):
    """`contexts` has the paper's gate at 40, 60 and 90%, `gates` at 50 and 90%; others lose more."""
    against = collect("ablation").query("metric == @ablation.AGAINST").set_index(["gate", "sparsity_requested"])
    more = {"block128:v1": 0.2, "quarter:v1": 0.1}
    assert set(against.index) == {(gate, sparsity) for gate in more for sparsity in (0.5, 0.9)}
    for gate, sparsity in against.index:
        line = against.loc[(gate, sparsity)]
        assert line.value == pytest.approx(more[gate] * sparsity**3, abs=0.01)
        assert line.low < line.value < line.high


def test_variants_have_their_own_line_and_the_best_oracle_is_named(tmp_path):
    run = origin("perplexity gates")
    losses = {"seer": 0.3, "seer+layer": 0.2, "oracle": LOSS["oracle"], "oracle-mass+layer": 0.1}
    gates = {name: "long:v1" if name.startswith("seer") else None for name in losses}
    cells = [(name, gates[name], "post", 0.9, loss) for name, loss in losses.items()]
    cells.append(("seer+threshold", "long:v1", "post", None, 0.0))
    rows = perplexity(run["run_id"], "gates", [DENSE, *cells], (1024,))
    rows = [row | {"threshold": 0.002 if row["method"] == "seer+threshold" else None} for row in rows]
    write_rows(tmp_path / "perplexity" / "gates.parquet", "perplexity", rows, run)
    frame = ablation.collect(Run(tmp_path), paper_values())
    against = frame[frame.metric == ablation.AGAINST].set_index("method").value
    assert against["seer+layer"] == pytest.approx(-0.1 * 0.9**3, abs=0.01)
    assert "seer+threshold" not in against  # it skips nothing here: beyond the range of the paper's gate
    shown = ablation.render(frame).set_index("gate")
    assert "SeerAttention, one threshold per layer (long:v1)" in shown.index
    assert shown.loc["SeerAttention, threshold rule (long:v1)", "loss, threshold 0.002"].startswith("+0.000")
    (note,) = [note for note in ablation.remarks(frame) if note.startswith("Best oracle measured")]
    assert "90%: Oracle by mass, one threshold per layer (+0.07" in note


def test_lookups_are_percentages_as_in_table_2(collect):
    cells = ablation.render(collect("ablation"))
    columns = [name for name in cells if name.startswith(ablation.LOOKUPS)]
    texts = [text for name in columns for text in cells[name] if text != table_format.ABSENT]
    assert texts
    assert all("]%" in text for text in texts)
