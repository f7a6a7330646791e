"""Read the cards of methods, which say what each is and how faithful, from source text and without torch."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from seerbench.devices import has_gpu


@dataclass(frozen=True)
class Card:
    """Facts about a method that are known without importing it.

    Attributes:
        name: the method's name in presets and rows.
        summary: the first line of the class's docstring.
        cites: its paper or address.
        needs: "cuda", or packages that must be installed.
        module: where its class is.
        attribute: the name of its class.
        fidelity: upstream's kernel unmodified, our port, or simplified and how; "" if a plug-in does not say.
    """

    name: str
    summary: str
    cites: str
    needs: tuple[str, ...]
    module: str
    attribute: str
    fidelity: str = ""

    def refused_here(self) -> str | None:
        """Return why this machine cannot run the method at all, or None. Imports nothing that is slow to import."""
        for need in self.needs:
            if need == "cuda":
                if not has_gpu():
                    return "needs an NVIDIA GPU; none found"
            elif importlib.util.find_spec(need) is None:
                return f"needs the package {need}; pip install 'seerbench[upstream]'"
        return None


def read_cards(path: Path, module: str) -> list[Card]:
    """Return the cards of the classes under `@register` in a source file, which is parsed and not imported.

    Args:
        path: the file.
        module: its dotted name, for the cards.
    """
    cards = []
    for node in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for mark in node.decorator_list:
            if not (isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "register"):
                continue
            keywords = {str(word.arg): ast.literal_eval(word.value) for word in mark.keywords}
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
