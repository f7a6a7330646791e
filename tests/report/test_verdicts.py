"""Verdicts: the rules, which run counts, and that every claim has a check."""

import math

import pandas as pd
import pytest
from synthetic_rows import write_kernel_run

from seerbench.errors import ResultsError
from seerbench.report import verdicts
from seerbench.report.evidence import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Comparison, Evidence

ROWS = pd.DataFrame()


def at_most_zero(low, high):
    return Comparison("x", ((low + high) / 2, low, high), 0.0, False, "nats")


@pytest.mark.parametrize(
    ("intervals", "missing", "verdict", "word"),
    [
        ([(-2, -1), (-3, -1)], [], REPRODUCED, ""),
        ([(-2, -1), (-1, 1)], [], NOT_REPRODUCED, "Undecided in 1 of 2"),
        ([(1, 2), (-1, 1)], [], NOT_REPRODUCED, "Contradicted by 1 of 2"),
        ([(-2, -1)], ["64k"], NOT_TESTABLE, "64k"),
        ([(1, 2)], ["64k"], NOT_REPRODUCED, "64k"),
        ([(math.nan, math.nan)], [], NOT_REPRODUCED, "Undecided"),  # a number without an interval decides nothing
    ],
)
def test_a_verdict_needs_every_interval_and_every_row(intervals, missing, verdict, word):
    found, reason = verdicts.decide(Evidence([at_most_zero(*interval) for interval in intervals], ROWS, missing))
    assert found == verdict
    assert word in reason


def kernel_claim(*runs):
    """Return the verdict on C1, the speed-up of the kernel, which the paper gives as 5.67x."""
    return verdicts.judge(runs)[0]


def test_the_kernel_claim_follows_the_rows(tmp_path):
    fast = kernel_claim(write_kernel_run(tmp_path / "fast", 6.0))
    assert (fast.verdict, fast.scale) == (REPRODUCED, "paper scale")
    assert "random" in fast.finding  # what the inputs are
    assert "Test GPU" in fast.label
    slow = kernel_claim(write_kernel_run(tmp_path / "slow", 20.0))
    assert slow.verdict == NOT_REPRODUCED
    assert [comparison.contradicts for comparison in slow.comparisons] == [True]


def test_a_claim_about_time_needs_a_gpu_and_the_papers_context(tmp_path):
    assert kernel_claim(write_kernel_run(tmp_path / "cpu", 6.0, driver=None)).verdict == NOT_TESTABLE
    short = kernel_claim(write_kernel_run(tmp_path / "short", 6.0, context=8192))
    assert short.verdict == NOT_TESTABLE
    assert "32k and 90%" in short.finding  # what is missing


def test_of_two_runs_the_later_counts_and_a_cpu_one_never(tmp_path):
    old = write_kernel_run(tmp_path / "old", 6.0)
    new = write_kernel_run(tmp_path / "new", 20.0, started="2026-11-25T01:00:00+00:00")
    cpu = write_kernel_run(tmp_path / "cpu", 1.0, driver=None, started="2026-11-26T01:00:00+00:00")
    assert kernel_claim(new, cpu, old).verdict == NOT_REPRODUCED


def test_the_larger_scale_counts_before_the_later_run(tmp_path):
    small = write_kernel_run(tmp_path / "small", 20.0, scale_kind="small", started="2026-11-25T01:00:00+00:00")
    assert kernel_claim(write_kernel_run(tmp_path / "paper", 6.0), small).verdict == REPRODUCED


def test_every_claim_of_the_paper_has_a_check(tmp_path):
    assert [verdict.id for verdict in verdicts.judge([])] == [f"C{number}" for number in range(1, 18)]
    (tmp_path / "claims.csv").write_text("id,claim,value,unit,where,scope\nC99,more,,,,\n")
    with pytest.raises(ResultsError, match="C99"):
        verdicts.paper_claims(tmp_path)
