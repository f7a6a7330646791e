"""The table of losses: the paper's follow from its perplexities, ours are paired, gates compare with v1."""

import pytest
from synthetic_rows import DENSE, LOSS, SPARSITIES, origin, perplexity

from seerbench.artefacts import losses
from seerbench.artefacts.paper_numbers import paper_values
from seerbench.errors import MissingRows
from seerbench.rows.store import Run, write_rows


def collected(folder, cells, contexts):
    """Write the experiment `contexts` with these cells and return its frame."""
    run = origin("perplexity contexts")
    rows = perplexity(run["run_id"], "contexts", cells, contexts)
    write_rows(folder / "perplexity" / "contexts.parquet", "perplexity", rows, run)
    return losses.collect(Run(folder), paper_values())


def test_the_papers_losses_are_those_of_its_perplexities(tmp_path):
    seer = ("seer", "long:v1", "post", 0.5, LOSS["seer"])
    printed = collected(tmp_path, [DENSE, seer], (4096, 8192)).query("source == 'paper'")
    assert set(printed.context) == {8192}  # the only one of the paper's that the run has
    expected = {0.4: 0.0030, 0.5: 0.0050, 0.6: 0.0089, 0.7: 0.0148, 0.8: 0.0266, 0.9: 0.0693}
    assert printed.set_index("sparsity_requested").value.to_dict() == pytest.approx(expected, abs=5e-5)


def test_the_losses_of_the_run_stand_beside_them(collect):
    frame = collect("losses")
    assert set(frame[frame.source == "paper"].context) == {8192, 16384, 32768, 65536, 131072}  # none is the run's
    ours = frame[(frame.gate == "long:v1") & (frame.context == 1024)].set_index("sparsity_requested")
    for sparsity in SPARSITIES:
        assert ours.value[sparsity] == pytest.approx(LOSS["seer"] * sparsity**3, abs=0.005)
        assert ours.low[sparsity] < ours.value[sparsity] < ours.high[sparsity]
    assert not (frame.method == "dense").any()
    cells = losses.render(frame).set_index(["context", "method"])
    assert cells.loc[("8k", "SeerAttention (v1)"), "0.40"] == "0.0030"
    assert cells.loc[("1k", "SeerAttention (long:v1)"), "0.40"].endswith("] (0.39)")


def test_a_gate_is_compared_with_v1_at_its_sparsity(tmp_path):
    cells = [("seer", f"long:{name}", "post", 0.9, loss) for name, loss in (("v1", 0.3), ("v2", 0.2))]
    cells += [("seer", "long:v2", "post", 0.5, 0.2), ("seer", "long:untrained", "post", 0.9, 1.0)]
    frame = collected(tmp_path, [DENSE, *cells], (8192,))
    (against,) = frame[frame.metric == losses.AGAINST].itertuples()  # v1 has no 50%, and the control no such line
    assert (against.gate, against.sparsity_requested) == ("long:v2", 0.9)
    assert against.value == pytest.approx(-0.1 * 0.9**3, abs=0.005)
    assert against.high < 0
    assert any("lower loss than v1's" in note for note in losses.remarks(frame))


def test_a_run_without_dense_rows_has_no_losses(tmp_path):
    with pytest.raises(MissingRows, match="beside dense"):
        collected(tmp_path, [("seer", "long:v1", "post", 0.5, LOSS["seer"])], (8192,))
