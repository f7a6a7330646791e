"""Read the cards of methods, which say what each is and how faithful, from source text and without torch."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from seerbench.devices import has_gpu

PROTOCOL = ("Method", "BlockSparse")  # the bases that methods/protocol.py offers; neither has a constructor


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
        title: its name in tables and legends; "" if it is `name`, or the palette has it (artefacts/colors.py).
        options: the arguments of its constructor, each with whether it must be given; None if unknown.
        plans_blocks: whether its plan is a BlockMask, which other kernels run too; None if unknown.
    """

    name: str
    summary: str
    cites: str
    needs: tuple[str, ...]
    module: str
    attribute: str
    fidelity: str = ""
    title: str = ""
    options: Mapping[str, bool] | None = None
    plans_blocks: bool | None = None

    def takes(self, option: str) -> bool:
        """Return whether the constructor takes an argument of that name, as far as the source says."""
        return self.options is None or option in self.options

    def required(self) -> list[str]:
        """Return the arguments of the constructor that have no default, as far as the source says."""
        return [name for name, needed in (self.options or {}).items() if needed]

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
    body = ast.parse(path.read_text(encoding="utf-8"), str(path)).body
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    for node in classes.values():
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
                    keywords.get("title", ""),
                    _options(node, classes),
                    _plans_blocks(node, classes),
                )
            )
    return cards


def _bases(node: ast.ClassDef) -> list[str]:
    """Return the names of a class's bases, without parameters in brackets."""
    plain = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
    return [base.id for base in plain if isinstance(base, ast.Name)]


def _options(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> dict[str, bool] | None:
    """Return the arguments of a class's constructor, each with whether it must be given; None if unknown."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            if part.args.kwarg or part.args.vararg:
                return None
            names = [argument.arg for argument in part.args.args[1:]]
            given = len(names) - len(part.args.defaults)
            options = {name: number < given for number, name in enumerate(names)}
            keywords = zip(part.args.kwonlyargs, part.args.kw_defaults, strict=True)
            return options | {argument.arg: default is None for argument, default in keywords}
    bases = _bases(node)
    if len(bases) != len(node.bases):
        return None
    found = [_options(classes[base], classes) for base in bases if base in classes]
    if found:
        return found[0]
    return {} if set(bases) <= set(PROTOCOL) else None


def _plans_blocks(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> bool | None:
    """Return whether a class inherits from BlockSparse; None if it has bases that the file does not define."""
    bases = _bases(node)
    if "BlockSparse" in bases:
        return True
    if not bases or not set(bases) <= {*classes, "Method"}:
        return None
    return any(_plans_blocks(classes[base], classes) for base in bases if base in classes)
