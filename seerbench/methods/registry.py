"""Find methods by name without importing them, so that `seerbench list` does not wait for torch.

A method is a class under `@register(name, cites=..., needs=...)` in `baselines/`, in `seer_attention.py`, or in a
module of another package. Such a package has an entry point in the group `seerbench.methods`: its name is the
method's name and its value is `module:Class`. The catalogue is read from the source text (cards.py). A module is
imported when its method is created.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from seerbench.errors import MethodError, UnknownMethod
from seerbench.methods.cards import Card, read_cards

if TYPE_CHECKING:
    from seerbench.methods.protocol import Method

ENTRY_POINTS = "seerbench.methods"
PACKAGE = Path(__file__).resolve().parent.parent


MethodClass = TypeVar("MethodClass", bound="type[Method[Any]]")
registered: set[type] = set()  # the classes that `register` has named in this process


def register(
    name: str, *, cites: str, needs: tuple[str, ...] = (), fidelity: str = "", title: str = ""
) -> Callable[[MethodClass], MethodClass]:
    """Name a method: a decorator for its class, which must inherit from `Method` (protocol.py).

    Args:
        name: the method's name in presets and rows.
        cites: its paper.
        needs: "cuda", or packages that must be installed.
        fidelity: how close it is to its upstream; see `Card`.
        title: its name in tables and legends, which are drawn from its card.

    Raises:
        MethodError: from the decorator, for a class that does not inherit from `Method`.
    """

    def mark(cls: MethodClass) -> MethodClass:
        # Imported here because listing methods must not import torch.
        from seerbench.methods.protocol import Method

        if not issubclass(cls, Method):
            raise MethodError(
                f"{cls.__module__}.{cls.__name__} is registered as the method {name} and does not inherit from "
                "seerbench.methods.protocol.Method (or BlockSparse, if its plan is a BlockMask)"
            )
        cls.name, cls.cites, cls.needs, cls.fidelity = name, cites, needs, fidelity
        registered.add(cls)
        return cls

    return mark


@functools.cache
def catalogue() -> dict[str, Card]:
    """Return the card of every known method by name, ours first.

    Raises:
        UnknownMethod: two methods of ours have one name, or a plug-in takes a name that is taken.
    """
    baselines = PACKAGE / "baselines"
    cards: dict[str, Card] = {}
    for path in [PACKAGE / "methods" / "seer_attention.py", *sorted(baselines.rglob("*.py"))]:
        module = "seerbench.methods.seer_attention"
        if path.is_relative_to(baselines):
            module = ".".join(("seerbench", "baselines", *path.relative_to(baselines).with_suffix("").parts))
        for card in read_cards(path, module):
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
        in_module = read_cards(Path(spec.origin), module) if spec and spec.origin else []
        own = next((card for card in in_module if card.attribute == attribute), None)
        cards[point.name] = own or Card(point.name, "(no card)", "", (), module, attribute)
    return cards


def add(card: Card) -> None:
    """Add a method to the catalogue of this process, such as one of a user's file.

    Raises:
        UnknownMethod: another method has this name.
    """
    known = catalogue().get(card.name)
    if known is not None and (known.module, known.attribute) != (card.module, card.attribute):
        raise UnknownMethod(
            f"the name {card.name} is taken by {known.module}; give the method another in @register, or use the "
            "known one by its name"
        )
    catalogue()[card.name] = card


def card_of(name: str) -> Card:
    """Return the card of one method; raise UnknownMethod, which lists the known names, for another name."""
    if name not in catalogue():
        raise UnknownMethod(f"no method {name!r}; known methods: {', '.join(sorted(catalogue()))}")
    return catalogue()[name]


def create(name: str, **options: Any) -> Any:
    """Return the method `name`, made with its options (sparsity, block, ...); its module is imported now.

    Raises:
        UnknownMethod: there is no method of this name.
    """
    card = card_of(name)
    return getattr(importlib.import_module(card.module), card.attribute)(**options)
