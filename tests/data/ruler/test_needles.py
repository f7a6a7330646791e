"""Test RULER's needle tasks against prompts written out by hand."""

import random
import re

import pytest

from seerbench.data.ruler.draws import Setting
from seerbench.data.ruler.needles import TASKS, essay_sentences, haystack, listed

ESSAY = ["One", "two", "three.", "Four", "five?", "Six!", "Seven", "eight"]
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
WORD = r"\S[^:]*"


def drawn(task, size, seed=0):
    return haystack(TASKS[task], Setting(4096, 42, ESSAY)).draw(size, random.Random(seed), 0)


def test_one_needle_in_noise_is_asked_for_in_the_singular():
    noise = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    found = drawn("niah_single_1", 2)
    (value,) = found.references
    key = re.search(r"for (.+) is: (\d{7})\.", found.turn)[1]
    needle = f"One of the special magic numbers for {key} is: {value}."
    lines = {0.0: [needle, noise, noise], 0.5: [noise, needle, noise]}[found.depth]
    assert found.needle == needle
    assert found.turn == (
        "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you "
        "about the number afterwards.\n"
        + "\n".join(lines)
        + f"\nWhat is the special magic number for {key} mentioned in "
        "the provided text?"
    )
    assert found.prefix == f" The special magic number for {key} mentioned in the provided text is"


def test_needles_in_an_essay_are_between_its_sentences():
    found = drawn("niah_multiquery", 8)
    pairs = dict(re.findall(r"numbers for (\S+-[^:]+) is: (\d{7})\.", found.turn))
    keys = [key for value in found.references for key, other in pairs.items() if other == value]
    assert len(pairs) == len(keys) == len(set(found.references)) == 4
    query = f"{keys[0]}, {keys[1]}, {keys[2]}, and {keys[3]}"
    head = (
        "Some special magic numbers are hidden within the following text. Make sure to memorize it. I will quiz "
        "you about the numbers afterwards.\n"
    )
    tail = f"\nWhat are all the special magic numbers for {query} mentioned in the provided text?"
    assert found.turn.startswith(head)
    assert found.turn.endswith(tail)
    context = found.turn.removeprefix(head).removesuffix(tail)
    needles = [f"One of the special magic numbers for {key} is: {value}." for key, value in pairs.items()]
    sentences = re.split("|".join(map(re.escape, needles)), context)
    assert " ".join(" ".join(sentences).split()) == "One two three. Four five? Six! Seven eight"
    for part in sentences:  # a needle is before a sentence or at the end, never inside one
        assert part.strip() == "" or part.strip()[-1] in ".!?" or part.endswith("eight")
    assert found.prefix == f" The special magic numbers for {query} mentioned in the provided text are"
    assert found.depth is None
    assert found.needle is None


def test_a_key_with_four_values_has_four_references():
    found = drawn("niah_multivalue", 8)
    (key,) = set(re.findall(r"numbers for (\S+-[^:]+) is: \d", found.turn))
    assert sorted(found.references) == sorted(re.findall(r"is: (\d{7})\.", found.turn))
    assert len(found.references) == 4
    assert found.turn.endswith(f"What are all the special magic numbers for {key} mentioned in the provided text?")


@pytest.mark.parametrize(
    ("task", "key", "value", "kind", "count"),
    [
        ("niah_single_2", WORD, r"\d{7}", "number", 1),
        ("niah_single_3", WORD, UUID, "uuid", 1),
        ("niah_multikey_1", WORD, r"\d{7}", "number", 4),
        ("niah_multikey_2", WORD, r"\d{7}", "number", 9),
        ("niah_multikey_3", UUID, UUID, "uuid", 9),
    ],
)
def test_one_of_several_keys_is_asked_for(task, key, value, kind, count):
    found = drawn(task, 8)
    pairs = re.findall(rf"One of the special magic {kind}s for ({key}) is: ({value})\.", found.turn)
    assert len(pairs) == count
    (asked,) = [name for name, held in pairs if held == found.references[0]]
    assert found.turn.endswith(f"What is the special magic {kind} for {asked} mentioned in the provided text?")
    assert 0 <= found.depth <= 1
    if count == 9:
        context = found.turn.split("afterwards.\n")[1].rsplit("\nWhat is", 1)[0]
        assert [line.startswith("One of") for line in context.split("\n")] == [True] * 9
        assert context.split("\n")[round(found.depth * 8)] == found.needle


def test_the_order_of_needles_is_the_same_in_every_example():
    orders = set()
    for seed in range(4):
        found = drawn("niah_multivalue", 8, seed)
        orders.add(tuple(found.references.index(value) for value in re.findall(r"is: (\d{7})\.", found.turn)))
    assert len(orders) == 1


def test_an_essay_is_cut_and_repeated_by_words():
    assert essay_sentences(ESSAY, 5) == ["One two three.", "Four five?"]
    assert essay_sentences(ESSAY, 10)[-1] == "Seven eight One two"


def test_names_are_listed_with_a_comma_before_and():
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == ["a", "a, and b", "a, b, and c"]
