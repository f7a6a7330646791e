"""Aggregates: perplexities by hand, documents that failed, and the dense method of a speed-up."""

import numpy as np
import pandas as pd
import pytest
from synthetic_rows import DENSE, perplexity, timings

from seerbench.artefacts import aggregates


def dense_rows(documents):
    return pd.DataFrame(perplexity("r", "contexts", [DENSE], [512], documents))


def test_perplexity_of_a_cell_by_hand():
    rows = dense_rows(2)
    sparse = rows.assign(method="seer", gate="g", sparsity_requested=0.5, sparsity_realised=[0.4, 0.6])
    rows["nll"], sparse["nll"] = [1.0, 3.0], [1.5, 3.1]
    both = pd.DataFrame(rows.to_dict("records") + sparse.to_dict("records"))
    dense, seer = aggregates.perplexities(both).to_dict("records")
    assert dense["value"] == pytest.approx(np.exp(2.0))
    assert dense["delta"] == 0
    assert seer["delta"] == pytest.approx(0.3)
    assert seer["sparsity_realised"] == pytest.approx(0.5)
    assert seer["count"] == 2


def test_a_document_that_failed_does_not_count_but_shows():
    rows = dense_rows(3)
    rows.loc[1, ["nll", "status", "reason"]] = [np.nan, "out_of_memory", "too long"]
    (line,) = aggregates.perplexities(rows).to_dict("records")
    assert (line["count"], line["status"], line["reason"]) == (2, "measured", "1 of 3 documents: too long")
    rows = rows.assign(nll=np.nan, status="refused", reason="head_dim")
    (line,) = aggregates.perplexities(rows).to_dict("records")
    assert (line["count"], line["status"], line["reason"]) == (0, "refused", "head_dim")
    assert np.isnan(line["value"])


def test_speedups_are_against_the_reference_and_against_the_fastest_dense():
    stages = {"fa2": 4.0, "cudnn": 2.0, "dense": 6.0}
    methods = [(name, None, {"attend": ms}, 1.0) for name, ms in stages.items()]
    cells, samples = timings("r", "methods", 1024, [*methods, ("seer", 0.5, {"total": 1.0, "attend": 0.5}, 1.0)])
    cells, samples = pd.DataFrame(cells), pd.DataFrame(samples)
    reference = aggregates.speedups(cells, samples, "total").set_index("method")
    assert set(reference.base) == {"fa2"}
    assert reference.loc["seer", "value"] == pytest.approx(4.0, rel=0.05)
    assert reference.loc["cudnn", "value"] == pytest.approx(2.0, rel=0.05)
    fastest = aggregates.speedups(cells, samples, "total", "fastest").set_index("method")
    assert set(fastest.base) == {"cudnn"}
    assert fastest.loc["seer", "value"] == pytest.approx(2.0, rel=0.05)
    without_dense = aggregates.speedups(cells[cells.method == "seer"], samples, "total")
    assert without_dense.status.tolist() == ["missing"]
    assert without_dense.reason.notna().all()


def test_methods_that_skip_nothing_on_random_inputs_are_named():
    """Check that dense methods, requested sparsities and captured inputs are not meant."""
    cells = pd.DataFrame(
        [
            ("fa2", None, 0.0, "random"),
            ("flashprefill", None, 0.0, "random"),
            ("flashprefill", None, 0.1, "random_weights"),
            ("moa", None, 0.5, "random"),
            ("streaming", 0.1, 0.1, "random"),
            ("xattention", None, 0.1, "captured"),
        ],
        columns=["method", "sparsity_requested", "sparsity_realised", "inputs_kind"],
    )
    (remark,) = aggregates.random_input_remarks(cells)
    assert "find nothing to skip at their own settings: FlashPrefill (10.0%) of the blocks" in remark
    assert aggregates.random_input_remarks(cells[cells.method != "flashprefill"]) == []
