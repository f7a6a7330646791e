"""Tests of settings.py: numbers of tokens as a person writes them."""

import pytest

from seerbench.settings import tokens_in


@pytest.mark.parametrize(
    ("text", "tokens"), [("2048", 2048), ("2k", 2048), ("128K", 131072), (" 1 ", 1), ("131072k", 2**27)]
)
def test_numbers_of_tokens(text, tokens):
    assert tokens_in(text) == tokens


@pytest.mark.parametrize(
    "text", ["", "0", "0k", "-5", "2.5k", "1e3", "2kk", "k", "nan", "2m", "١", "9" * 30, "131073k"]
)
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="number of tokens"):
        tokens_in(text)
