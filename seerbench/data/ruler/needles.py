"""RULER's eight needle tasks: sentences with a key and a value, hidden in text, of which some are asked for."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from seerbench.data.ruler import words
from seerbench.data.ruler.draws import NOISE, Draw, Haystack, Setting

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
MANY = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. I will quiz you "
    "about the {kind} afterwards.\n{context}\n"
    "What are all the special magic {kind} for {query} mentioned in the provided text?",
    " The special magic {kind} for {query} mentioned in the provided text are",
)
ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. I will quiz you "
    "about the {kind} afterwards.\n{context}\n"
    "What is the special magic {kind} for {query} mentioned in the provided text?",
    " The special magic {kind} for {query} mentioned in the provided text is",
)
DEPTHS = tuple(round(100 * place / 39) for place in range(40))  # percent of an essay's sentences
SENTENCE_END = re.compile(r"(?<=[.!?]) ")
STEP_WORDS, STEP_LINES = 500, 25
# Below this length in tokens RULER shrinks a haystack of lines by fewer at a time. Essays too are shrunk by fewer
# words here, since 500 of them are a third of 2048 tokens.
SHORT, SHORT_WORDS, SHORT_LINES = 4096, 50, 5
NUMBERS, UUIDS = "numbers", "uuids"
ESSAY, LINES, NEEDLES = "essay", "noise", "needles"


@dataclass(frozen=True)
class Needles:
    """A needle task: its haystack, the kinds of keys and values, and how many there are and are asked for."""

    haystack: str = ESSAY
    keys: str = "words"
    values: str = NUMBERS
    count: int = 1
    values_per_key: int = 1
    asked: int = 1


TASKS = {
    "niah_single_1": Needles(haystack=LINES),
    "niah_single_2": Needles(),
    "niah_single_3": Needles(values=UUIDS),
    "niah_multikey_1": Needles(count=4),
    "niah_multikey_2": Needles(haystack=NEEDLES),
    "niah_multikey_3": Needles(haystack=NEEDLES, keys=UUIDS, values=UUIDS),
    "niah_multivalue": Needles(values_per_key=4),
    "niah_multiquery": Needles(count=4, asked=4),
}
DRAWN: dict[str, Callable[[random.Random], str]] = {
    "words": words.word_key,
    NUMBERS: words.number,
    UUIDS: words.code,
}


def haystack(task: Needles, setting: Setting) -> Haystack:
    """Return how a needle task draws at one length. Sizes are words of the essay, or lines."""
    draw, short = functools.partial(_draw, task, setting), setting.length < SHORT
    if task.haystack == ESSAY:
        return Haystack(draw, smallest=1, step=SHORT_WORDS if short else STEP_WORDS)
    return Haystack(draw, smallest=task.count * task.values_per_key, step=SHORT_LINES if short else STEP_LINES)


def _draw(task: Needles, setting: Setting, size: int, rng: random.Random, number: int) -> Draw:
    keys = [DRAWN[task.keys](rng) for _ in range(task.count)]
    values = [[DRAWN[task.values](rng) for _ in range(task.values_per_key)] for _ in keys]
    pairs = [(key, value) for key, own in zip(keys, values, strict=True) for value in own]
    needles = [_needle(task, *pair) for pair in pairs]
    # The order in which needles appear is the same in all examples of a task, as in RULER.
    placed = setting.shuffled(needles)
    if task.haystack == ESSAY:
        sentences = essay_sentences(setting.essay, size)
        depths = sorted(rng.sample(DEPTHS, len(placed)))
        context = " ".join(inserted(sentences, placed, [len(sentences) * depth // 100 for depth in depths]))
        places = [depth / 100 for depth in depths]
    else:
        lines = [NOISE] * size
        if task.haystack == NEEDLES:
            lines = [_needle(task, DRAWN[task.keys](rng), DRAWN[task.values](rng)) for _ in range(size)]
        indices = sorted(rng.sample(range(size), len(placed)))
        context = "\n".join(inserted(lines, placed, indices))
        places = [index / size for index in indices]
    asked = rng.sample(range(task.count), task.asked)
    references = [value for index in asked for value in values[index]]
    single = len(references) == 1
    turn, prefix = ONE if single else MANY
    kind = task.values[:-1] if single else task.values
    query = listed([keys[index] for index in asked])
    needle = _needle(task, query, references[0]) if single else None
    return Draw(
        turn=turn.format(kind=kind, context=context, query=query),
        prefix=prefix.format(kind=kind, query=query),
        references=tuple(references),
        needle=needle,
        depth=places[placed.index(needle)] if needle is not None else None,
    )


def _needle(task: Needles, key: str, value: str) -> str:
    return NEEDLE.format(kind=task.values, key=key, value=value)


def listed(names: Sequence[str]) -> str:
    """Return names as text: one alone, several as `a, b, and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])}, and {names[-1]}"


def inserted(lines: Sequence[str], needles: Sequence[str], places: Sequence[int]) -> list[str]:
    """Return the lines with each needle before the line at its place; the places ascend."""
    found: list[str] = []
    last = 0
    for needle, place in zip(needles, places, strict=True):
        found += [*lines[last:place], needle]
        last = place
    return [*found, *lines[last:]]


def essay_sentences(essay: Sequence[str], size: int) -> list[str]:
    """Return the first `size` words of an essay, repeated if it is shorter, as sentences that end with . ! or ?"""
    repeats = -(-size // len(essay))
    return SENTENCE_END.split(" ".join((list(essay) * repeats)[:size]))
