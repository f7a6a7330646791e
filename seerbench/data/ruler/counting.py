"""RULER's two counting tasks: common words of a numbered list (cwe), frequent words of a coded text (fwe)."""

from __future__ import annotations

import functools
import math
import random
import string

from seerbench.data.ruler import words
from seerbench.data.ruler.draws import Draw, Haystack, Setting
from seerbench.data.ruler.needles import SHORT
from seerbench.errors import CorpusError

COMMON_TURN = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n{context}\nQuestion: What are the 10 most common words in the above list?"
)
COMMON_PREFIX = " Answer: The top 10 words that appear most often in the list are:"
COMMON = 10  # words that appear more often
STEP = 10

FREQUENT_TURN = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
    "appeared coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?"
)
FREQUENT_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"
LETTERS = 6
ANSWER_TOKENS = 50  # of fwe
TOKENS_PER_WORD = 50  # of the length, for each word of the vocabulary
DOTS = "..."  # in place of the most frequent word
ZETA_2 = math.pi**2 / 6  # the sum of 1 / k^2


def common_words(setting: Setting) -> Haystack:
    """Return how cwe draws at one length. Sizes are different words; the lists of wonderwords bound them."""
    return Haystack(functools.partial(_common, setting), COMMON, STEP, len(words.all_words()))


def _common(setting: Setting, size: int, rng: random.Random, number: int) -> Draw:
    short = setting.length < SHORT
    worked, worked_answers = _numbered_list(setting, *((20, 3, 1) if short else (40, 10, 3)), rng)
    context, answers = _numbered_list(setting, size, *((6, 1) if short else (30, 3)), rng)
    example = f"{COMMON_TURN.format(context=worked)}{COMMON_PREFIX} {numbered(worked_answers)}"
    return Draw(f"{example}\n{COMMON_TURN.format(context=context)}", COMMON_PREFIX, tuple(answers))


def _numbered_list(
    setting: Setting, size: int, often: int, seldom: int, rng: random.Random
) -> tuple[str, list[str]]:
    """Return a numbered list of `size` different words, and the ten of them that it has `often` times."""
    drawn = rng.sample(words.all_words(), size)
    common, others = drawn[:COMMON], drawn[COMMON:]
    return numbered(setting.shuffled(common * often + others * seldom)), common


def numbered(listed: list[str]) -> str:
    """Return words as a numbered list: `1. word 2. word`."""
    return " ".join(f"{place}. {word}" for place, word in enumerate(listed, start=1))


def frequent_words(setting: Setting) -> Haystack:
    """Return how fwe draws at one length; raise CorpusError for one that is too short for four coded words.

    Sizes are words of the text, before the counts of the single words are rounded down.
    """
    vocabulary = (setting.length - ANSWER_TOKENS) // TOKENS_PER_WORD
    if vocabulary < 4:
        raise CorpusError(f"fwe needs a length of at least {4 * TOKENS_PER_WORD + ANSWER_TOKENS} tokens")
    smallest = math.ceil(4**2 * ZETA_2)  # the fourth word appears once
    return Haystack(functools.partial(_frequent, setting, vocabulary), smallest, STEP)


def _frequent(setting: Setting, vocabulary: int, size: int, rng: random.Random, number: int) -> Draw:
    ranked = setting.shuffled(sorted(words.letters(rng, vocabulary, LETTERS, string.ascii_lowercase)))
    ranked[0] = DOTS
    text: list[str] = []
    for rank, word in enumerate(ranked, start=1):
        text += [word] * int(size * rank**-2 / ZETA_2)
    context = " ".join(setting.shuffled(text))
    return Draw(FREQUENT_TURN.format(context=context), FREQUENT_PREFIX, tuple(ranked[1:4]))
