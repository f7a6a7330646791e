"""Checks of time: time to first token at each context of Table 4, and the paper's factor at the longest."""

import pytest
from synthetic_rows import origin, timings

from seerbench.artefacts.paper_numbers import TABLE_4_CONTEXTS, paper_values
from seerbench.report import checks_time
from seerbench.rows.store import Run, write_rows


def first_token_run(folder, contexts, faster):
    """Write a GPU run in which SeerAttention takes 100 ms and FlashAttention-2 `faster` times as long."""
    for context in contexts:
        run = origin("latency", context, driver="600.1")
        methods = [("fa2", None, {"ttft": 100.0 * faster}, 1.0), ("seer", 0.5, {"ttft": 100.0}, 1.0)]
        cells, samples = timings(run["run_id"], "ttft", context, methods)
        write_rows(folder / "cells" / f"{context}.parquet", "cells", cells, run)
        write_rows(folder / "samples" / f"{context}.parquet", "samples", samples, run)
    return Run(folder)


@pytest.mark.parametrize(("faster", "by_the_papers_factor"), [(2.0, False), (4.0, True)])
def test_the_longest_context_is_compared_with_the_papers_factor_too(tmp_path, faster, by_the_papers_factor):
    evidence = checks_time.first_token_dense(first_token_run(tmp_path, TABLE_4_CONTEXTS, faster), paper_values())
    *at_contexts, by_factor = evidence.comparisons
    assert all(comparison.holds for comparison in at_contexts)
    assert by_factor.bound == 2.66
    assert by_factor.holds == by_the_papers_factor
    assert not evidence.missing


def test_contexts_that_were_not_timed_are_missing(tmp_path):
    evidence = checks_time.first_token_dense(first_token_run(tmp_path, (8192, 32768), 2.0), paper_values())
    assert list(evidence.missing) == ["16k", "64k", "128k"]
    assert len(evidence.comparisons) == 2
