"""primitives."""

from __future__ import annotations


def _vector(n: int) -> int:
    """Floats that one load of a row of n scores takes: a row starts at a multiple of that."""
    return 4 if n % 4 == 0 else 1
