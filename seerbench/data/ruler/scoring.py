"""RULER's two metrics: is each reference, or any reference, part of the answer?"""

from __future__ import annotations

import re
from collections.abc import Sequence

CONTROL = re.compile("[\x00-\x1f]")


def match_all(prediction: str, references: Sequence[str]) -> float:
    """Return the share of the references that the prediction contains, 0 to 1, whatever their case."""
    found = _found(prediction, references)
    return sum(found) / len(found)


def match_part(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if the prediction contains any of the references, whatever their case, else 0."""
    return float(any(_found(prediction, references)))


def _found(prediction: str, references: Sequence[str]) -> list[bool]:
    """Return for each reference whether it is in the prediction, whose control characters become line breaks."""
    text = CONTROL.sub("\n", prediction.strip()).strip().lower()
    return [reference.lower() in text for reference in references]
