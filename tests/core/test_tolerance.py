"""The tolerance fails on errors beyond rounding, on NaN and on stray infinities."""

import pytest
import torch

from seerbench.core.tolerance import assert_no_worse_than_rounding


def test_the_tolerance_fails_when_it_must():
    exact = torch.randn(100, dtype=torch.float64)
    rounded = exact.half()
    assert_no_worse_than_rounding(rounded, exact, rounded)
    with pytest.raises(AssertionError, match="over the budget"):
        assert_no_worse_than_rounding(rounded + 0.01, exact, rounded)
    for bad in (torch.nan, torch.inf):
        broken = rounded.clone()
        broken[3] = bad
        with pytest.raises(AssertionError):
            assert_no_worse_than_rounding(broken, exact, rounded)
    empty = exact.clone()
    empty[0] = -torch.inf  # the log-sum-exp of a row without keys
    assert_no_worse_than_rounding(empty.half(), empty, empty.half())
    with pytest.raises(AssertionError):
        assert_no_worse_than_rounding(rounded, empty, empty.half())
