"""Test RULER's two metrics on answers marked by hand."""

import pytest

from seerbench.data.ruler.scoring import match_all, match_part


@pytest.mark.parametrize(
    ("prediction", "references", "every", "part"),
    [
        (" 1234567 and 7654321.", ["1234567", "7654321"], 1.0, 1.0),
        ("1234567", ["1234567", "7654321", "1111111", "2222222"], 0.25, 1.0),
        ("nothing", ["1234567"], 0.0, 0.0),
        ("ABCDE, fghij", ["abcde", "FGHIJ"], 1.0, 1.0),
        ("12\x00345", ["12345"], 0.0, 0.0),  # a control character divides
        ("a\tb", ["a\nb"], 1.0, 1.0),
        ("the oak-tree", ["oak"], 1.0, 1.0),  # a reference within a longer word counts, as in RULER
    ],
)
def test_references_count_as_parts_of_the_answer(prediction, references, every, part):
    assert match_all(prediction, references) == every
    assert match_part(prediction, references) == part
