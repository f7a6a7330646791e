"""Test RULER's variable tracking against a prompt written out by hand."""

import itertools
import random
import re

from seerbench.data.ruler.draws import Setting
from seerbench.data.ruler.tracking import haystack

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
HEAD = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"


def parts(text):
    """Return the names of a chain in order, its value, and the kinds of lines of its context."""
    context, question = text.removeprefix(HEAD).split("\nQuestion: ")
    value = re.fullmatch(r"Find all variables that are assigned the value (\d{5}) in the text above\.", question)[1]
    lines = context.split("\n")
    chain = [line for line in lines if line != NOISE]
    names = [re.match(r"VAR ([A-Z]+) = ", line)[1] for line in chain]
    wanted = [f"VAR {names[0]} = {value}"]
    wanted += [f"VAR {name} = VAR {before} " for before, name in itertools.pairwise(names)]
    assert chain == wanted
    assert 10_000 <= int(value) <= 99_998
    return names, value, [line == NOISE for line in lines]


def test_a_chain_of_five_names_is_hidden_in_noise_after_a_worked_example():
    draw = haystack(Setting(4096, 42, count=lambda text: len(text) // 4)).draw
    examples = [draw(7, random.Random(seed), 0) for seed in (0, 1)]
    kinds = []
    for found in examples:
        worked, turn = found.turn.split("\n\nMemorize")
        names, value, kind = parts("Memorize" + turn)
        assert kind.count(True) == 7
        assert list(found.references) == names
        assert {len(name) for name in names} == {5}
        assert found.prefix == (
            " Answer: According to the chain(s) of variable assignment in the text above, 5 variables are assigned "
            f"the value {value}, they are: "
        )
        question, answer = worked.split(" Answer: ")
        names, value, kind = parts(question)
        assert {len(name) for name in names} == {3}
        assert answer == (
            "According to the chain(s) of variable assignment in the text above, 5 variables are assigned the "
            f"value {value}, they are:  {' '.join(names)}"
        )
        # At four characters per token, the largest worked example that has at most 500 tokens.
        assert len(worked) // 4 <= 500 < (len(worked) + len(NOISE) + 1) // 4
        kinds.append(kind)
    assert kinds[0] == kinds[1]  # the places in the worked example are those of every example
    assert examples[0].turn.split("\n\n")[1] != examples[1].turn.split("\n\n")[1]
