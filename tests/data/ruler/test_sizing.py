"""Test that the largest haystack that fits is found."""

import pytest

from seerbench.data.ruler.sizing import largest_size


@pytest.mark.parametrize("limit", [3, 4, 5, 7, 8, 100, 1023])
def test_the_largest_size_that_fits_is_found_in_few_steps(limit):
    asked = []

    def fits(size):
        asked.append(size)
        return size <= limit

    assert largest_size(fits, 3) == limit
    assert len(asked) <= 20
    assert largest_size(fits, 3, largest=6) == min(limit, 6)


def test_no_size_fits_if_the_smallest_does_not():
    assert largest_size(lambda size: False, 5) is None
