"""cards."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from seerbench.devices import has_gpu


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
