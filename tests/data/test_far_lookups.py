"""Test look-ups that rows in the middle answer: where facts, questions and answers stand, and what is prefilled."""

import numpy as np
import pytest

from seerbench.data import far_lookups, lookup_parts
from seerbench.errors import CorpusError


def made(setting, task, context=512, count=12):
    tokenizer, documents = setting
    return far_lookups.__dict__[task](documents["test"], tokenizer, context, count, 0), lookup_parts.pieces_of(
        tokenizer
    )


def lines_of(tokens, start):
    """Return the two tokens after every occurrence of `start`, and where the second of them is."""
    text = tokens.tolist()
    length = len(start)
    places = [at for at in range(len(text) - length) if text[at : at + length] == start.tolist()]
    return {at + length + 1: tuple(text[at + length : at + length + 2]) for at in places}


@pytest.mark.parametrize("task", ["midtext", "tracking", "question_first", "two_questions"])
def test_a_value_stands_twice_as_far_apart_as_the_example_says(setting, task):
    examples, _ = made(setting, task)
    assert len(examples) == (48 if task == "midtext" else 12)
    for example in examples:
        assert example.tokens.shape == (512,)
        assert example.tokens.dtype == np.int32
        (value,) = example.answer
        source = example.answer_start - example.distance
        assert np.flatnonzero(example.tokens == value)[0] <= source
        assert example.tokens[source] == value


def test_midtext_asks_in_the_middle_for_pairs_far_before(setting):
    examples, pieces = made(setting, "midtext")
    for example in examples:
        assert example.prefilled == 512  # The whole window runs through the method.
        assert 0.45 * 512 < example.answer_start < 0.92 * 512
        pairs = lines_of(example.tokens, pieces.kv)
        first = pairs[example.answer_start - example.distance]
        assert first == pairs[example.answer_start]
        assert example.distance > 0.05 * 512
    windows = {example.tokens.tobytes() for example in examples}
    assert len(windows) == 12
    assert max(example.distance for example in examples) > 0.6 * 512


def test_tracking_leads_from_the_asked_name_to_the_value_in_the_order_of_the_text(setting):
    examples, pieces = made(setting, "tracking")
    for example in examples:
        ((end, (name, value)),) = lines_of(example.tokens, pieces.value).items()
        assert (end, value) == (example.answer_start, example.answer[0])
        lines = lines_of(example.tokens, pieces.let)
        set_to = dict(lines.values())
        assert len(set_to) == far_lookups.CHAINS * far_lookups.LINKS
        assert set_to[set_to[set_to[name]]] == value
        first, second, third = (
            next(place for place, (each, _) in lines.items() if each == wanted)
            for wanted in (set_to[set_to[name]], set_to[name], name)
        )
        assert first < second < third
        assert example.answer_start - example.distance == first
        assert example.prefilled == example.answer_start == 511


def test_question_first_asks_before_every_pair(setting):
    examples, pieces = made(setting, "question_first")
    for example in examples:
        ((asked, (key, _)),) = lines_of(example.tokens, pieces.wanted).items()
        pairs = lines_of(example.tokens, pieces.kv)
        assert len(pairs) == lookup_parts.KV_PAIRS
        assert asked < min(pairs)
        assert dict(pairs.values())[key] == example.answer[0]
        assert example.prefilled == example.answer_start == 511


def test_the_second_question_is_not_in_the_prompt(setting):
    examples, pieces = made(setting, "two_questions")
    for example in examples:
        lines = lines_of(example.tokens, pieces.kv)
        first, second = sorted(lines)[-2:]
        assert second == example.answer_start == 511
        assert example.prefilled == first  # The prompt ends with the first key.
        assert lines[first] != lines[second]


def test_a_window_that_is_too_short_is_refused(setting):
    with pytest.raises(CorpusError, match="tracking needs"):
        made(setting, "tracking", context=64, count=1)
