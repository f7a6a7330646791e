"""tolerance."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_no_worse_than_rounding(actual: Tensor, exact: Tensor, rounded: Tensor, slack: float = 2.0) -> None:
    """`actual` may miss the float64 answer by `slack` times what plain rounding of it misses.

    actual: what the kernel gave. exact: the float64 oracle. rounded: the same maths in the
    kernel's dtype, in torch. Fails on NaN, on infinities that `exact` does not have, and on any
    element beyond the budget. Raises AssertionError with the error and its budget.
    """
    error, budget = error_and_budget(actual, exact, rounded, slack)
    assert error <= budget, f"error {error:.3e} is over the budget {budget:.3e} (slack {slack} x rounding)"


def error_and_budget(actual: Tensor, exact: Tensor, rounded: Tensor, slack: float = 2.0) -> tuple[float, float]:
    """(largest error, what it may be); the error is inf where `actual` has a NaN or a stray infinity."""
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
