"""Checks of time: first tokens at each context of Table 4, the training kernel, and the share of the gate."""

import pytest
from synthetic_rows import origin, timings, write_kernel_run

from seerbench.artefacts.paper_numbers import TABLE_4_CONTEXTS, paper_values
from seerbench.report import checks_time
from seerbench.report.evidence import CONTRADICTED, REPRODUCED, UNDECIDED
from seerbench.report.verdicts import decide
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


def test_the_kernel_under_the_authors_conditions_is_noted(tmp_path):
    run = write_kernel_run(tmp_path, 5.0)
    assert "authors" not in checks_time.kernel_speedup(run, paper_values()).note
    extra = origin("latency", "authors", driver="600.1")
    methods = [("fa2", None, {"attend": 60.0}, 1.0), ("block_sparse", 0.9, {"attend": 10.0}, 1.0)]
    cells, samples = timings(extra["run_id"], "authors_kernel", 32768, methods)
    write_rows(tmp_path / "cells" / "b.parquet", "cells", cells, extra)
    write_rows(tmp_path / "samples" / "b.parquet", "samples", samples, extra)
    evidence = checks_time.kernel_speedup(Run(tmp_path), paper_values())
    (comparison,) = evidence.comparisons
    assert comparison.interval[0] == pytest.approx(12, rel=0.1)
    assert "query heads): 6." in evidence.note or "query heads): 5." in evidence.note


def training_run(folder, ms, peak, naive="out_of_memory", contexts=(8192, 65536)):
    """Write a GPU run of the training kernel: FlashAttention-2 takes 100 ms and 1000 MiB in each context."""
    for context in contexts:
        run = origin("latency", f"training-{context}", driver="600.1")
        methods = [("fa2", None, {"forward": 100.0}, 1000.0), ("pooled", None, {"forward": ms}, peak)]
        cells, samples = timings(run["run_id"], "training_kernel", context, [*methods, ("naive", None, {}, None)])
        for cell in cells:
            if cell["method"] == "naive":
                cell |= {"status": naive, "reason": "a test", "peak_mib": None}
        write_rows(folder / "cells" / f"{context}.parquet", "cells", cells, run)
        write_rows(folder / "samples" / f"{context}.parquet", "samples", samples, run)
    return Run(folder)


@pytest.mark.parametrize(
    ("ms", "peak", "naive", "verdict"),
    [
        (50.0, 1001.0, "out_of_memory", REPRODUCED),  # faster than "the same"
        (50.0, 1001.0, "refused", REPRODUCED),  # its maps would not fit
        (50.0, 1001.0, "failed", UNDECIDED),  # that says nothing about memory
        (50.0, 1001.0, "measured", UNDECIDED),
        (130.0, 1001.0, "out_of_memory", UNDECIDED),  # "same" has no number, so this contradicts nothing
        (50.0, 1900.0, "out_of_memory", CONTRADICTED),  # more than Algorithm 1 itself keeps
    ],
)
def test_the_training_kernel_is_judged_by_what_the_paper_says(tmp_path, ms, peak, naive, verdict):
    """At 8k, batch 1 and 4 heads of the synthetic rows, Algorithm 1 keeps 8 MiB of row maxima, at 64k 512."""
    evidence = checks_time.training_kernel(training_run(tmp_path, ms, peak, naive), paper_values())
    assert decide(evidence)[0] == verdict
    assert f"{peak / 1000:.2f}x at 8k" in evidence.note  # the ratio is a remark


def test_the_training_kernel_must_reach_the_papers_longest_context(tmp_path):
    evidence = checks_time.training_kernel(training_run(tmp_path, 50.0, 1001.0, contexts=(8192,)), paper_values())
    assert decide(evidence)[0] == UNDECIDED
    assert "64k" in evidence.missing


@pytest.mark.parametrize("method", ["pooled", "fa2"])
def test_a_disturbed_timing_of_the_training_kernel_is_missing(tmp_path, method):
    run = training_run(tmp_path, 50.0, 1001.0, contexts=(8192, 16384, 65536))
    cells = run.table("cells")
    other = origin("latency", "training-16384", driver="600.1")
    at_16k = cells[cells.context == 16384]
    busy = at_16k.method == method
    at_16k = at_16k.assign(status=at_16k.status.where(~busy, "disturbed"), reason="a test")
    write_rows(tmp_path / "cells" / "16384.parquet", "cells", at_16k, other)
    evidence = checks_time.training_kernel(run, paper_values())
    assert list(evidence.missing) == ["undisturbed timings at 16k"]
    assert decide(evidence)[0] == UNDECIDED
    assert not any("time" in comparison.what and "16k" in comparison.what for comparison in evidence.comparisons)


@pytest.mark.parametrize(("plan", "verdict"), [(1.0, REPRODUCED), (10.0, CONTRADICTED)])
def test_the_gates_share_is_that_of_its_own_time_and_dense_is_a_remark(tmp_path, plan, verdict):
    run = origin("latency methods", driver="600.1")
    stages = {"plan": plan, "attend": 99.0, "total": 100.0}
    methods = [("fa2", None, {"attend": 400.0, "total": 400.0}, 1.0), ("seer", 0.9, stages, 1.0)]
    cells, samples = timings(run["run_id"], "methods", 32768, methods)
    write_rows(tmp_path / "cells" / "a.parquet", "cells", cells, run)
    write_rows(tmp_path / "samples" / "a.parquet", "samples", samples, run)
    evidence = checks_time.gate_share(Run(tmp_path), paper_values())
    assert decide(evidence)[0] == verdict
    assert "Of FlashAttention-2's time" in evidence.note


def disturb(run, context):
    """Mark the cells of a context as disturbed, and return the run."""
    path = run.folder / "cells" / f"{context}.parquet"
    cells = run.table("cells", path.stem).assign(status="disturbed", reason="other processes used 1.7 of 2 cores")
    write_rows(path, "cells", cells, origin("latency", context, driver="600.1"))
    return Run(run.folder)


def test_a_disturbed_context_is_missing_and_its_times_prove_nothing(tmp_path):
    run = disturb(first_token_run(tmp_path, TABLE_4_CONTEXTS, 4.0), 131072)
    evidence = checks_time.first_token_dense(run, paper_values())
    assert list(evidence.missing) == ["128k"]
    assert len(evidence.comparisons) == len(TABLE_4_CONTEXTS) - 1
