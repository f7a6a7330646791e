"""Find the method that `seerbench evaluate` is given, and make it known under its name in this process."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seerbench.compare.load import NEEDS_A_MODEL, load
from seerbench.errors import CompareError
from seerbench.methods.cards import Card, read_cards
from seerbench.methods.registry import add, card_of
from seerbench.settings import SLUG

GIVEN = ("sparsity", "block")  # the arguments that `evaluate` gives to a method's constructor


@dataclass(frozen=True)
class Candidate:
    """The method that is evaluated.

    Attributes:
        card: its card; the name is that of its rows.
        made: its class.
        file: the file that it was read from.
    """

    card: Card
    made: type[Any]
    file: Path

    @property
    def name(self) -> str:
        """Return the name of the method in rows."""
        return self.card.name


def candidate(target: str) -> Candidate:
    """Return the method that a target names, which then is in the catalogue of this process.

    Raises CompareError for a kernel, a method without the argument `sparsity`, one that needs other arguments or
    what this machine does not have, and UnknownMethod for an unknown name or one that is taken.

    Args:
        target: a file, a module or an object in one of them, as `seerbench compare` takes it, or a name of
            `seerbench list`.
    """
    if ".py" in target or ":" in target:
        made = load(target)
        if not isinstance(made, type):
            raise CompareError(
                f"{target} is a kernel, which loses nothing: `seerbench compare` times it. A method is a class "
                "under @register with plan and attend"
            )
        card = _card(made)
        if not re.fullmatch(SLUG, card.name):
            raise CompareError(
                f"the name {card.name!r} in @register becomes that of a folder; write letters, digits, '.', "
                "'_' and '-' alone"
            )
        add(card)
    else:
        card = card_of(target)
        if target in NEEDS_A_MODEL:
            raise CompareError(f"{target} needs {NEEDS_A_MODEL[target]}; the presets measure it: make figures")
        made = getattr(importlib.import_module(card.module), card.attribute)
    _require_arguments(card)
    return Candidate(card, made, _file(made))


def _file(made: type[Any]) -> Path:
    return Path(str(sys.modules[made.__module__].__file__))


def _card(made: type[Any]) -> Card:
    """Return the card of a user's class, from its source text."""
    file = _file(made)
    try:
        return next(card for card in read_cards(file, made.__module__) if card.attribute == made.__name__)
    except (StopIteration, ValueError):
        raise CompareError(
            f"{file}: @register cannot be read; write @register(...) above the class itself, with plain texts"
        ) from None


def _require_arguments(card: Card) -> None:
    """Raise CompareError for a method that cannot be made from a sparsity and a block size, or not here."""
    if not card.takes("sparsity"):
        raise CompareError(
            f"{card.name} takes no argument sparsity, and methods are compared at equal sparsity; give its "
            "constructor one: __init__(self, sparsity=0.9, block=64)"
        )
    others = [name for name in card.required() if name not in GIVEN]
    if others:
        raise CompareError(f"{card.name} needs {', '.join(others)}; give these arguments defaults")
    refusal = card.refused_here()
    if refusal:
        raise CompareError(f"{card.name} {refusal}")
