"""RULER's variable tracking (vt): a chain of assignments in noise; which variables have the value?"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Sequence

from seerbench.data.ruler import words
from seerbench.data.ruler.draws import NOISE, Draw, Haystack, Setting
from seerbench.data.ruler.needles import SHORT, inserted
from seerbench.data.ruler.sizing import largest_size

HOPS = 4
TURN = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {value} in the text above."
)
PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {variables} variables are "
    "assigned the value {value}, they are: "
)
EXAMPLE_TOKENS = 500  # of the worked example
STEP, SHORT_STEP = 10, 5
SMALLEST = HOPS + 1  # lines of noise: each assignment is before another one


def haystack(setting: Setting) -> Haystack:
    """Return how variable tracking draws at one length. Sizes are lines of noise."""
    # The places of the worked example are the same in all examples; its names and its value are not.
    size = largest_size(
        lambda lines: setting.count(_worked(setting, lines, random.Random(setting.seed))) <= EXAMPLE_TOKENS,
        SMALLEST,
    )
    draw = functools.partial(_draw, setting, size or SMALLEST)
    return Haystack(draw, SMALLEST, SHORT_STEP if setting.length < SHORT else STEP)


def _draw(setting: Setting, worked_size: int, size: int, rng: random.Random, number: int) -> Draw:
    worked = _worked(setting, worked_size, rng)
    names, value = words.letters(rng, HOPS + 1, 5), _value(rng)
    context = _context(names, value, size, rng)
    return Draw(
        turn=f"{worked}\n\n{TURN.format(context=context, value=value)}",
        prefix=PREFIX.format(variables=HOPS + 1, value=value),
        references=tuple(names),
    )


def _worked(setting: Setting, size: int, rng: random.Random) -> str:
    """Return a question with its answer: names of three letters, places as the seed of the setting decides."""
    names, value = words.letters(rng, HOPS + 1, 3), _value(rng)
    context = _context(names, value, size, random.Random(setting.seed))
    prefix = PREFIX.format(variables=HOPS + 1, value=value)
    return f"{TURN.format(context=context, value=value)}{prefix} {' '.join(names)}"


def _value(rng: random.Random) -> str:
    return str(rng.randint(10_000, 99_998))


def _context(names: Sequence[str], value: str, size: int, rng: random.Random) -> str:
    """Return lines of noise with the chain's assignments among them, in order."""
    chain = [f"VAR {names[0]} = {value}"]
    chain += [f"VAR {name} = VAR {before} " for before, name in itertools.pairwise(names)]
    places = sorted(rng.sample(range(size), len(chain)))
    return "\n".join(inserted([NOISE] * size, chain, places))
