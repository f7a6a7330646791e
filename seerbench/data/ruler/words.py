"""Draw the words, numbers and codes of RULER's tasks. The word lists are those of the package wonderwords."""

from __future__ import annotations

import functools
import random
import string
import uuid
from importlib import resources


@functools.cache
def word_list(kind: str) -> tuple[str, ...]:
    """Return a list of wonderwords in its order; kind: noun, adjective or verb."""
    file = resources.files("wonderwords.assets") / f"{kind}list.txt"
    return tuple(line.rstrip() for line in file.read_text(encoding="utf-8").splitlines())


@functools.cache
def all_words() -> tuple[str, ...]:
    """Return the different words of the three lists, sorted."""
    return tuple(sorted({word for kind in ("noun", "adjective", "verb") for word in word_list(kind)}))


def word_key(rng: random.Random) -> str:
    """Return a random key of two words: `adjective-noun`."""
    return f"{rng.choice(word_list('adjective'))}-{rng.choice(word_list('noun'))}"


def number(rng: random.Random) -> str:
    """Return a random number of seven digits."""
    return str(rng.randint(1_000_000, 9_999_999))


def code(rng: random.Random) -> str:
    """Return a random UUID of version 4."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def letters(rng: random.Random, count: int, length: int, alphabet: str = string.ascii_uppercase) -> list[str]:
    """Return `count` different strings of `length` random letters."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices(alphabet, k=length))] = None
    return list(found)
