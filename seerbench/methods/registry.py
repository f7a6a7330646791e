"""Finding methods by name without importing them: `seerbench list` must not wait for torch.

A method is a class under `@register(name, cites=..., needs=...)` in `baselines/*.py` or `seer.py`, or
in a third party's module named by an entry point of the group `seerbench.methods` (its value is
`module:Class`, its name the method's name). The catalogue is read off the source text; the module is
imported when the method is created.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from seerbench.errors import UnknownMethod
from seerbench.methods.cards import Card, _read_cards

ENTRY_POINTS = "seerbench.methods"


def register(name: str, *, cites: str, needs: tuple[str, ...] = (), fidelity: str = "") -> Callable[[type], type]:
    """Class decorator that names a method. cites: its paper; needs, fidelity: see `Card`."""

    def mark(cls: type) -> type:
        cls.name, cls.cites, cls.needs, cls.fidelity = name, cites, needs, fidelity
        return cls

    return mark


@functools.cache
def catalogue() -> dict[str, Card]:
    """Every known method by name, ours first. UnknownMethod when a plug-in takes a taken name."""
    baselines = _baselines_folder()
    cards: dict[str, Card] = {}
    for path in [Path(__file__).with_name("seer_attention.py"), *sorted(baselines.rglob("*.py"))]:
        module = "seerbench.methods.seer_attention"
        if path.is_relative_to(baselines):
            module = ".".join(("seerbench", "baselines", *path.relative_to(baselines).with_suffix("").parts))
        for card in _read_cards(path, module):
            if card.name in cards:
                raise UnknownMethod(f"two methods call themselves {card.name}: {cards[card.name].module}, {module}")
            cards[card.name] = card
    for point in entry_points(group=ENTRY_POINTS):
        if point.name in cards:
            raise UnknownMethod(
                f"the plug-in {point.value} may not call its method {point.name}: the name is taken by "
                f"{cards[point.name].module}; rename its entry point"
            )
        module, _, attribute = point.value.partition(":")
        spec = importlib.util.find_spec(module)
        found = _read_cards(Path(spec.origin), module) if spec and spec.origin else []
        card = next((card for card in found if card.attribute == attribute), None)
        cards[point.name] = card or Card(point.name, "(no card)", "", (), module, attribute)
    return cards


def card_of(name: str) -> Card:
    """The card of one method; UnknownMethod lists the known names for another."""
    if name not in catalogue():
        raise UnknownMethod(f"no method {name!r}; known methods: {', '.join(sorted(catalogue()))}")
    return catalogue()[name]


def create(name: str, **options: Any) -> Any:
    """The method `name`, built with its options (sparsity, block, ...). Imports its module now."""
    card = card_of(name)
    return getattr(importlib.import_module(card.module), card.attribute)(**options)


def _baselines_folder() -> Path:
    # find_spec of the package itself imports only its (empty) __init__.
    spec = importlib.util.find_spec("seerbench.baselines")
    return Path(spec.submodule_search_locations[0])
