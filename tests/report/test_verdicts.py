"""Verdicts: the rules of one run, which run decides, and that every claim has a check."""

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_rows import write_kernel_run

from seerbench.errors import ResultsError
from seerbench.report import verdicts
from seerbench.report.evidence import (
    CONTRADICTED,
    KINDS,
    NOT_MEASURED,
    NOT_TESTABLE,
    REPRODUCED,
    UNDECIDED,
    Comparison,
    Evidence,
)

ROWS = pd.DataFrame()
RANK = [CONTRADICTED, UNDECIDED, REPRODUCED]  # from worse to better for the paper


def at_most_zero(low, high):
    return Comparison("x", ((low + high) / 2, low, high), 0.0, False, "nats")


@pytest.mark.parametrize(
    ("intervals", "missing", "verdict", "word"),
    [
        ([(-2, -1), (-3, -1)], [], REPRODUCED, ""),
        ([(-2, -1), (-1, 1)], [], UNDECIDED, "Undecided in 1 of 2"),
        ([(1, 2), (-1, 1)], [], CONTRADICTED, "Contradicted by 1 of 2"),
        ([(-2, -1)], ["64k"], UNDECIDED, "What was measured holds. Not measured: 64k"),
        ([(1, 2)], ["64k"], CONTRADICTED, "64k"),
        ([(math.nan, math.nan)], [], UNDECIDED, ""),  # a number without an interval decides nothing
        ([], [], NOT_TESTABLE, ""),  # nothing was compared, so nothing holds
        ([], ["64k"], NOT_TESTABLE, "64k"),
    ],
)
def test_a_verdict_needs_every_interval_and_every_row(intervals, missing, verdict, word):
    found, reason = verdicts.decide(Evidence([at_most_zero(*interval) for interval in intervals], ROWS, missing))
    assert found == verdict
    assert word in reason


numbers = st.floats(-1e3, 1e3)


@st.composite
def comparisons(draw, ours=None):
    """Draw a comparison with any interval and bound, on either side, with and without rounding."""
    ours = draw(st.booleans()) if ours is None else ours
    low, estimate, high = sorted(draw(st.tuples(numbers, numbers, numbers)))
    rounding = draw(st.sampled_from([0.0, 1e-3, 1.0]))
    return Comparison("x", (estimate, low, high), draw(numbers), draw(st.booleans()), "x", rounding, ours)


@given(comparisons())
def test_no_comparison_both_holds_and_contradicts(comparison):
    assert not (comparison.holds and comparison.contradicts)


@given(st.lists(comparisons(), min_size=1, max_size=4), st.data())
def test_a_better_interval_never_makes_a_verdict_worse(before, data):
    after = []
    for each in before:
        by = data.draw(st.floats(0, 100)) * (1 if each.above else -1)
        interval = tuple(number + by for number in each.interval)
        after.append(Comparison("x", interval, each.bound, each.above, "x", each.rounding, each.ours))
    worse, better = (verdicts.decide(Evidence(each, ROWS))[0] for each in (before, after))
    assert RANK.index(worse) <= RANK.index(better)


@given(st.lists(comparisons(ours=True), max_size=4))
def test_a_bound_of_our_own_contradicts_nothing(ours):
    assert verdicts.decide(Evidence(ours, ROWS))[0] != CONTRADICTED


@given(comparisons(), st.sampled_from([[], ["64k"]]))
def test_a_missing_part_never_makes_a_claim_reproduced(comparison, missing):
    found = verdicts.decide(Evidence([comparison], ROWS, missing))[0]
    assert found in RANK
    assert not (missing and found == REPRODUCED)


def test_a_difference_within_the_rounding_of_the_paper_is_undecided():
    """8.79 to 8.81 may be 8.785 to 8.815: a loss that is only above the printed one does not contradict it."""
    measured = (0.0030, 0.0025, 0.0033)
    printed = Comparison("x", measured, 0.0023, False, "nats", rounding=0.0011)
    assert not printed.holds
    assert not printed.contradicts
    assert Comparison("x", measured, 0.0023, False, "nats").contradicts


def kernel_claim(*published, own=None):
    """Return the judgement on C1, the speed-up of the kernel, which the paper gives as 5.67x."""
    return verdicts.judge(published, own)[0]


def test_the_kernel_claim_follows_the_rows(tmp_path):
    fast = kernel_claim(write_kernel_run(tmp_path / "fast", 6.0))
    assert fast.with_scale == "reproduced (paper scale)"
    assert "random" in fast.finding  # what the inputs are
    assert "Test GPU" in fast.evidence[0].label
    slow = kernel_claim(write_kernel_run(tmp_path / "slow", 20.0))
    assert slow.verdict == CONTRADICTED
    assert [comparison.contradicts for comparison in slow.evidence[0].comparisons] == [True]


def test_a_claim_about_time_needs_a_gpu_and_the_papers_context(tmp_path):
    assert kernel_claim(write_kernel_run(tmp_path / "cpu", 6.0, driver=None)).verdict == NOT_TESTABLE
    short = kernel_claim(write_kernel_run(tmp_path / "short", 6.0, context=8192))
    assert short.verdict == NOT_TESTABLE
    assert "32k and 90%" in short.finding  # what is missing


def test_of_two_runs_the_later_decides_and_a_cpu_one_never(tmp_path):
    old = write_kernel_run(tmp_path / "old", 6.0)
    new = write_kernel_run(tmp_path / "new", 20.0, started="2026-11-25T01:00:00+00:00")
    cpu = write_kernel_run(tmp_path / "cpu", 1.0, driver=None, started="2026-11-26T01:00:00+00:00")
    claim = kernel_claim(new, cpu, old)
    assert [(each.run, each.verdict) for each in claim.evidence] == [("new", CONTRADICTED), ("old", REPRODUCED)]
    assert claim.verdict == CONTRADICTED


LATER = "2026-11-25T01:00:00+00:00"


@pytest.mark.parametrize(
    ("published", "own", "decides"),
    [
        ("paper", "small", "published"),
        ("paper", "paper", "published"),
        ("small", "paper", "own"),
        ("small", "real", "own"),
        ("real", "real", "published"),
        ("paper", "real", "published"),
        ("small", "toy", "published"),
        (None, "toy", "own"),
    ],
)
def test_the_stronger_scale_decides_and_at_equal_scale_a_published_run(tmp_path, published, own, decides):
    """The other run stays below it as evidence, with its own verdict."""
    first = write_kernel_run(tmp_path / "published", 6.0, scale_kind=published)
    mine = write_kernel_run(tmp_path / "own", 20.0, scale_kind=own, started=LATER)
    claim = kernel_claim(first, own=mine)
    assert [each.run for each in claim.evidence] == sorted(["published", "own"], key=lambda name: name != decides)
    assert {each.run: each.verdict for each in claim.evidence} == {"published": REPRODUCED, "own": CONTRADICTED}
    assert [each.own for each in claim.evidence] == [each.run == "own" for each in claim.evidence]


def test_a_run_that_was_published_is_not_counted_twice(tmp_path):
    published = write_kernel_run(tmp_path / "machine", 6.0)
    assert len(kernel_claim(published, own=published).evidence) == 1
    copied = write_kernel_run(tmp_path / "copy" / "machine", 6.0)  # the same execution in another folder
    assert len(kernel_claim(published, own=copied).evidence) == 1


def test_the_headline_counts_every_claim_once(tmp_path):
    judgements = verdicts.judge([write_kernel_run(tmp_path / "fast", 6.0)])
    assert verdicts.headline(judgements) == (
        "17 claims: 1 reproduced, 0 contradicted, 0 undecided, 16 not testable here; "
        "4 of SeerAttention-R: 4 not measured"
    )
    assert verdicts.by_scale(judgements) == "Paper scale: 1 reproduced."
    assert {judgement.verdict for judgement in judgements} <= set(KINDS)
    assert verdicts.by_scale(verdicts.judge([])) == ""


def test_every_claim_of_the_paper_has_a_check(tmp_path):
    judgements = verdicts.judge([])
    first, second = [f"C{number}" for number in range(1, 18)], [f"R{number}" for number in range(1, 5)]
    assert [judgement.id for judgement in judgements] == [*first, *second]
    assert {judgement.verdict for judgement in judgements[:17]} == {NOT_TESTABLE}
    assert {judgement.verdict for judgement in judgements[17:]} == {NOT_MEASURED}
    assert {judgement.finding for judgement in judgements} == {"Missing: any run."}
    (tmp_path / "claims.csv").write_text("id,claim,value,unit,where,scope\nC99,more,,,,\n")
    with pytest.raises(ResultsError, match="C99"):
        verdicts.paper_claims(tmp_path)
