"""The form of tables: how many digits a number has."""

import pytest

from seerbench.artefacts import table_format


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((10.03,), "10.03"),
        ((12.3456, 11.8, 12.9), "12.35 [11.80, 12.90]"),
        ((1234.5, 1200.0, 1270.0), "1234 [1200, 1270]"),
        ((0.01234, 0.01, 0.015), "0.012 [0.010, 0.015]"),
        ((0.0, -1e-17, 31.0), "0 [0, 31]"),  # as Wilson's interval of no right answer
    ],
)
def test_digits_follow_the_interval(numbers, text):
    assert table_format.number(*numbers) == text
