"""Evidence in words: a number is printed with the digits that its verdict needs."""

import math
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from seerbench.report.evidence import Comparison

NUMBER = r"-?\d+(?:\.\d+)?"


def nats(estimate, low, high, bound):
    return Comparison("x", (estimate, low, high), bound, False, "nats")


@pytest.mark.parametrize(
    ("comparison", "text", "required"),
    [
        (nats(0.0004, 0.00006, 0.0007, 0.0), "x: 0.0004 nats [0.0001, 0.0007]", "at most 0 nats"),
        (nats(0.0024, 0.0019, 0.0029, 0.002273), "x: 0.0024 nats [0.0019, 0.0029]", "at most 0.0023 nats"),
        (nats(0.023, 0.02, 0.027, 0.0412), "x: 0.023 nats [0.020, 0.027]", "at most 0.041 nats"),
        (nats(0.0, 0.0, 0.0, 0.0), "x: 0.000 nats", "at most 0 nats"),
        (nats(-0.00001, -0.00002, 0.0, 0.0), "x: -0.00001 nats [-0.00002, 0.00000]", "at most 0 nats"),
        (Comparison("x", (15.23, 14.96, 15.31), 5.67, True, "x"), "x: 15.2x [15.0, 15.3]", "at least 5.67x"),
        (Comparison("x", (5.69, 5.672, 5.7), 5.67, True, "x"), "x: 5.690x [5.672, 5.700]", "at least 5.67x"),
        (Comparison("x", (3.0, math.nan, math.nan), 1.0, True, "x"), "x: 3.00x", "at least 1x"),
        (Comparison("x", (64.1, 64.1, 64.1), 64.0, False, "MiB"), "x: 64.1 MiB", "at most 64 MiB"),
    ],
)
def test_numbers_have_the_digits_that_decide(comparison, text, required):
    assert str(comparison) == text
    assert comparison.requirement(comparison.decimals) == required


def test_a_bound_that_is_ours_or_rounded_says_so():
    assert "our reading" in Comparison("x", (2, 1, 3), 1.1, False, "x", ours=True).requirement(2)
    within = Comparison("x", (0.003, 0.0025, 0.0033), 0.0023, False, "nats", rounding=0.0011)
    assert "0.0034 is equal in the digits that the paper prints" in within.requirement(within.decimals)
    holds = Comparison("x", (0.001, 0.0005, 0.0015), 0.0023, False, "nats", rounding=0.0011)
    assert holds.requirement(4) == "at most 0.0023 nats"


numbers = st.floats(-1e3, 1e3)


@given(st.tuples(numbers, numbers, numbers).map(sorted), numbers, st.booleans())
def test_the_printed_numbers_have_the_verdict_of_the_exact_ones(interval, bound, above):
    """A reader who compares the printed interval with the printed bound comes to the same verdict."""
    low, estimate, high = interval
    assume(all(number == bound or abs(number - bound) > 1e-6 for number in interval))
    exact = Comparison("x", (estimate, low, high), bound, above, "")
    printed = [float(number) for number in re.findall(NUMBER, str(exact).removeprefix("x: "))]
    printed = printed * 3 if len(printed) == 1 else printed
    printed_bound = float(re.search(NUMBER, exact.requirement(exact.decimals)).group())
    read = Comparison("x", tuple(printed), printed_bound, above, "")
    assert (read.holds, read.contradicts) == (exact.holds, exact.contradicts)
