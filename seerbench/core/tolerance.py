"""Derive the tolerance of a kernel from what plain rounding in its dtype explains, instead of choosing one."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_no_worse_than_rounding(actual: Tensor, exact: Tensor, rounded: Tensor, slack: float = 2.0) -> None:
    """Assert that a result misses the float64 reference by at most `slack` times what plain rounding misses.

    Args:
        actual: the kernel's result.
        exact: the float64 reference, of the same shape.
        rounded: the reference computed in the kernel's dtype.
        slack: factor on the error of `rounded`.

    Raises:
        AssertionError: an element is beyond the budget, is NaN, or is infinite where `exact` is not.
    """
    error, budget = error_and_budget(actual, exact, rounded, slack)
    assert error <= budget, f"error {error:.3e} is over the budget {budget:.3e} (slack {slack} x rounding)"


def error_and_budget(actual: Tensor, exact: Tensor, rounded: Tensor, slack: float = 2.0) -> tuple[float, float]:
    """Return the largest error of a result, and the error that rounding explains.

    The error is inf, and the budget 0, if `actual` has a NaN or an infinity that `exact` does not have. The
    arguments are those of `assert_no_worse_than_rounding`.
    """
    exact, rounded = exact.double(), rounded.double()
    finite = exact.isfinite()
    if actual.isnan().any() or not torch.equal(actual.double()[~finite], exact[~finite]):
        return float("inf"), 0.0
    if not finite.any():
        return 0.0, 0.0
    if not actual[finite].isfinite().all():
        return float("inf"), 0.0
    scale = exact[finite].abs().max()
    budget = slack * ((rounded - exact)[finite].abs().max() + torch.finfo(actual.dtype).eps * scale)
    return float((actual.double() - exact)[finite].abs().max()), float(budget)
