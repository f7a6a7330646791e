"""Finding methods by name without importing them: `seerbench list` must not wait for torch.

A method is a class under `@register(name, cites=..., needs=...)` in `baselines/*.py` or `seer.py`, or
in a third party's module named by an entry point of the group `seerbench.methods` (its value is
`module:Class`, its name the method's name). The catalogue is read off the source text; the module is
imported when the method is created.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

ENTRY_POINTS = "seerbench.methods"


class UnknownMethod(ValueError):
    """No method of that name, or a plug-in that may not have its name. The text lists the known ones."""


@dataclass(frozen=True)
class Card:
    """What is known of a method without importing it."""

    name: str
    summary: str  # first line of the class's docstring
    cites: str
    needs: tuple[str, ...]  # "cuda", or packages that must be installed
    module: str
    attribute: str
    fidelity: str = ""  # upstream kernel unmodified, our port, simplified and how; "" where a plug-in does not say

    def refused_here(self) -> str | None:
        """Why this machine cannot run the method at all, or None. Imports nothing heavy."""
        for need in self.needs:
            if need == "cuda":
                if not has_gpu():
                    return "needs an NVIDIA GPU; none found"
            elif importlib.util.find_spec(need) is None:
                return f"needs the package {need}; pip install 'seerbench[upstream]'"
        return None


def register(name: str, *, cites: str, needs: tuple[str, ...] = (), fidelity: str = "") -> Callable[[type], type]:
    """Class decorator that names a method. cites: its paper; needs, fidelity: see `Card`."""

    def mark(cls: type) -> type:
        cls.name, cls.cites, cls.needs, cls.fidelity = name, cites, needs, fidelity
        return cls

    return mark


def has_gpu() -> bool:
    """Whether an NVIDIA driver answers here; asks the driver's tool, not torch."""
    return shutil.which("nvidia-smi") is not None


@functools.cache
def catalogue() -> dict[str, Card]:
    """Every known method by name, ours first. UnknownMethod when a plug-in takes a taken name."""
    own = Path(__file__).parent
    cards: dict[str, Card] = {}
    for path in [own / "seer.py", *sorted(_baselines_folder().glob("*.py"))]:
        module = "seerbench.seer" if path.name == "seer.py" else f"seerbench.baselines.{path.stem}"
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


def _read_cards(path: Path, module: str) -> list[Card]:
    """The registered classes of one source file, read as text."""
    cards = []
    for node in ast.parse(path.read_text(), str(path)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for mark in node.decorator_list:
            if not (isinstance(mark, ast.Call) and getattr(mark.func, "id", None) == "register"):
                continue
            keywords = {word.arg: ast.literal_eval(word.value) for word in mark.keywords}
            summary = (ast.get_docstring(node) or "(no docstring)").splitlines()[0]
            cards.append(
                Card(
                    ast.literal_eval(mark.args[0]),
                    summary,
                    keywords["cites"],
                    tuple(keywords.get("needs", ())),
                    module,
                    node.name,
                    keywords.get("fidelity", ""),
                )
            )
    return cards
