"""Find how long a haystack may be: the largest whose prompt, with the answer, has at most the wanted tokens."""

from __future__ import annotations

from collections.abc import Callable


def largest_size(fits: Callable[[int], bool], smallest: int, largest: int | None = None) -> int | None:
    """Return the largest size that fits, by doubling and then a binary search; None if the smallest does not.

    Args:
        fits: whether a prompt of that size is short enough. A larger one is longer, but for small variations.
        smallest: the first size.
        largest: no size above it is tried.
    """
    if not fits(smallest):
        return None
    good, bad = smallest, 2 * smallest
    while (largest is None or bad <= largest) and fits(bad):
        good, bad = bad, 2 * bad
    if largest is not None:
        bad = min(bad, largest + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good
