"""Test RULER's counting tasks against prompts written out by hand."""

import random
import re
from collections import Counter

import pytest

from seerbench.data.ruler.counting import common_words, frequent_words
from seerbench.data.ruler.draws import Setting
from seerbench.data.ruler.words import all_words, word_list
from seerbench.errors import CorpusError

HEAD = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n"
)
QUESTION = "\nQuestion: What are the 10 most common words in the above list?"


def words_of(listed):
    """Return the words of a numbered list, whose numbers ascend from 1."""
    parts = re.split(r"(?:^| )(\d+)\. ", listed)
    assert parts[1::2] == [str(number) for number in range(1, len(parts) // 2 + 1)]
    return parts[2::2]


@pytest.mark.parametrize(
    ("length", "main", "worked", "distinct"), [(4096, (30, 3), (10, 3), 40), (2048, (6, 1), (3, 1), 20)]
)
def test_ten_words_are_more_common_than_the_others(length, main, worked, distinct):
    found = common_words(Setting(length, 42)).draw(25, random.Random(0), 0)
    example, turn = found.turn[: found.turn.index(f"\n{HEAD}")], found.turn[found.turn.index(f"\n{HEAD}") + 1 :]
    assert turn.startswith(HEAD)
    assert turn.endswith(QUESTION)
    counts = Counter(words_of(turn.removeprefix(HEAD).removesuffix(QUESTION)))
    assert {word for word, count in counts.items() if count == main[0]} == set(found.references)
    assert sorted(counts.values()) == [main[1]] * 15 + [main[0]] * 10
    listed, answer = example.removeprefix(HEAD).split(QUESTION)
    counts = Counter(words_of(listed))
    prefix = " Answer: The top 10 words that appear most often in the list are:"
    assert answer.startswith(f"{prefix} 1. ")
    assert {word for word, count in counts.items() if count == worked[0]} == set(
        words_of(answer.removeprefix(f"{prefix} "))
    )
    assert sorted(counts.values()) == [worked[1]] * (distinct - 10) + [worked[0]] * 10
    assert found.prefix == prefix


def test_the_words_are_those_of_wonderwords():
    assert [len(word_list(kind)) for kind in ("adjective", "noun")] == [912, 6782]
    assert len(all_words()) == common_words(Setting(4096, 42)).largest == 8166


def test_frequencies_fall_with_the_square_of_the_rank():
    found = frequent_words(Setting(1050, 42)).draw(400, random.Random(0), 0)
    head = (
        "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
        "appeared coded words. "
    )
    tail = (
        "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most "
        "frequently appeared words in the above coded text?"
    )
    assert found.turn.startswith(head)
    assert found.turn.endswith(tail)
    text = found.turn.removeprefix(head).removesuffix(tail).split(" ")
    # 400 / 1.6449 = 243.17; divided by the squares of 1 to 15, rounded down; 20 words in the vocabulary.
    counts = [243, 60, 27, 15, 9, 6, 4, 3, 3, 2, 2, 1, 1, 1, 1]
    ranked = Counter(text).most_common()
    assert [count for _, count in ranked] == counts
    assert ranked[0][0] == "..."
    assert tuple(word for word, _ in ranked[1:4]) == found.references
    assert all(re.fullmatch("[a-z]{6}", word) for word, _ in ranked[1:])
    assert found.prefix == (
        " Answer: According to the coded text above, the three most frequently appeared words are:"
    )


def test_a_length_without_four_coded_words_is_refused():
    assert frequent_words(Setting(250, 42)).smallest == 27
    with pytest.raises(CorpusError, match="at least 250 tokens"):
        frequent_words(Setting(249, 42))
