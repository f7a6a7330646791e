"""Checks of quality: which sparsities are compared, and LongBench's buckets."""

import pytest
from synthetic_rows import DENSE, longbench_rows, origin, perplexity

from seerbench.artefacts.paper_numbers import paper_values
from seerbench.errors import MissingRows
from seerbench.report import checks_quality
from seerbench.rows.store import Run, write_rows


def test_minference_at_its_own_sparsity_meets_the_next_gate_that_skips_as_much(tmp_path):
    run = origin("perplexity")
    cells = [DENSE, ("minference", "searched", "none", None, 0.0)]
    cells += [("seer", "long:v1", "post", sparsity, 1.0) for sparsity in (0.5, 0.7, 0.9)]
    rows = perplexity(run["run_id"], "contexts", cells, (1024,))
    rows = [{**row, "sparsity_realised": 0.6} if row["method"] == "minference" else row for row in rows]
    write_rows(tmp_path / "perplexity" / "contexts.parquet", "perplexity", rows, run)
    (comparison,) = checks_quality.below_minference(Run(tmp_path), None).comparisons
    assert "0.68 against 0.60" in comparison.what  # not the gate at 50%, nor that at 90%
    assert comparison.contradicts  # it loses 0.7 ** 3 nats, MInference here nothing


@pytest.mark.parametrize(("seer", "holds"), [(0.6, True), (0.4, False)])
def test_the_longbench_claim_is_about_every_bucket(tmp_path, seer, holds):
    run = origin("tasks longbench")
    write_rows(tmp_path / "tasks" / "longbench.parquet", "tasks", longbench_rows(run["run_id"], seer), run)
    evidence = checks_quality.tasks_at_or_above(Run(tmp_path), paper_values())
    assert [comparison.what for comparison in evidence.comparisons] == ["0-4k", "8k+"]
    assert [comparison.holds for comparison in evidence.comparisons] == [holds, holds]


@pytest.mark.parametrize(
    "check", [checks_quality.post_half, checks_quality.joint_half, checks_quality.best_pooling]
)
def test_a_run_without_the_rows_is_told_apart_from_a_broken_one(tmp_path, check):
    with pytest.raises(MissingRows) as missing:
        check(Run(tmp_path), paper_values())
    assert missing.value.table == "perplexity"
