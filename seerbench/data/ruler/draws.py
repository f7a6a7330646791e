"""Define what a task of RULER draws: one question with its haystack, before a chat template."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@dataclass(frozen=True)
class Draw:
    """One question.

    Attributes:
        turn: what the user says.
        prefix: the beginning of the assistant's answer, which the prompt ends with.
        references: the right answers.
        needle: the sentence that has the answer, where there is exactly one.
        depth: its place in the haystack, 0 to 1.
    """

    turn: str
    prefix: str
    references: tuple[str, ...]
    needle: str | None = None
    depth: float | None = None


@dataclass(frozen=True)
class Setting:
    """What the examples of one task and length have in common.

    Attributes:
        length: tokens of prompt and answer together.
        seed: of the shuffles that RULER makes equal in all examples.
        essay: words of the text that needles are hidden in.
        count: returns the number of tokens of a text.
        documents: for questions: (question, answers, its documents) of each one.
    """

    length: int
    seed: int
    essay: Sequence[str] = ()
    count: Callable[[str], int] = len
    documents: Sequence[tuple[str, tuple[str, ...], tuple[str, ...]]] = ()

    def shuffled(self, values: Sequence[str]) -> list[str]:
        """Return the values in an order that depends on the seed and their number alone."""
        found = list(values)
        random.Random(self.seed).shuffle(found)
        return found


# (size of the haystack, source of randomness, number of the example) -> question.
Drawer = Callable[[int, random.Random, int], Draw]


@dataclass(frozen=True)
class Haystack:
    """How a task draws, and which sizes its haystack may have.

    Attributes:
        draw: makes one question.
        smallest: the smallest size.
        step: by which a haystack that is too long gets smaller.
        largest: the largest size; None: any.
    """

    draw: Drawer
    smallest: int
    step: int
    largest: int | None = None
