"""Define the pattern of a head, and read and write files of patterns in upstream's format.

Source: microsoft/MInference (MIT) at fb56c917, its configuration files and minference_forward.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seerbench.errors import ModelError
from seerbench.reading import read_json

# The kinds of patterns, as upstream's files name them.
KINDS = ("vertical_and_slash", "stream_llm", "block_sparse")
# Columns and diagonals of every head in upstream's current file for Llama-3.1-8B-Instruct ("v2").
VERTICAL, SLASH = 512, 2048
# Upstream's first file for that model, in baselines/configs, with its scores rounded.
V1_FILE = "minference-llama-3.1-8b-v1.json"
CURE = "make it with `seerbench patterns PRESET MODEL`, or give another file"
# Tokens per block for which upstream's budgets are meant.
UPSTREAM_BLOCK = 64


@dataclass(frozen=True)
class Pattern:
    """Pattern of one head: its kind and its two budgets.

    Attributes:
        kind: one of KINDS.
        first: vertical_and_slash: columns. stream_llm: first keys. block_sparse: blocks per row.
        second: vertical_and_slash: diagonals. stream_llm: keys of the window. block_sparse: unused.
        score: how well the pattern did in the search.
    """

    kind: str
    first: int
    second: int
    score: float = 0.0


# Upstream's pattern for a head that its file does not name.
DEFAULT_PATTERN = Pattern("vertical_and_slash", 1000, 6096)


def load_patterns(path: Path | str) -> list[dict[int, Pattern]]:
    """Read upstream's format: a list over layers of {"head": [kind, first, second, score]}.

    Returns:
        For each layer, the patterns by head.

    Raises:
        ModelError: the file cannot be read, or is no configuration of MInference; the text names layer and head.
    """
    content = read_json(path, ModelError, CURE, list)
    if not content or not all(isinstance(layer, dict) for layer in content):
        raise ModelError(f"{path} is no MInference configuration: expected a list of objects over heads; {CURE}")
    layers: list[dict[int, Pattern]] = []
    for number, layer in enumerate(content):
        layers.append({})
        for head, entry in layer.items():
            pattern = _pattern(entry)
            if pattern is None or not head.isdecimal():
                form = f'"head": [{" | ".join(KINDS)}, count, count, score]'
                raise ModelError(f"{path}: layer {number}, head {head}: expected {form}; {CURE}")
            layers[number][int(head)] = pattern
    return layers


def _pattern(entry: Any) -> Pattern | None:
    """Return the pattern that an entry of upstream's format describes, or None if it describes none."""
    if not isinstance(entry, list) or len(entry) not in (3, 4) or entry[0] not in KINDS:
        return None
    first, second, score = (*entry[1:], 0.0)[:3]
    if type(first) is not int or type(second) is not int or min(first, second) < 0:
        return None
    return Pattern(entry[0], first, second, float(score)) if isinstance(score, int | float) else None


def save_patterns(path: Path, layers: Sequence[Sequence[Pattern]]) -> None:
    """Write the patterns of each layer and head in upstream's format."""
    content = [
        {str(head): [p.kind, p.first, p.second, p.score] for head, p in enumerate(layer)} for layer in layers
    ]
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def scaled_budgets(patterns: Sequence[Pattern], factor: float) -> list[Pattern]:
    """Return the patterns with both budgets multiplied by `factor` and rounded, each at least 1."""

    def times(count: int) -> int:
        return max(1, round(count * factor))

    return [replace(p, first=times(p.first), second=times(p.second)) for p in patterns]


def at_block(count: int, block: int) -> int:
    """Return `budget`, which upstream means for blocks of 64 tokens, rescaled to `block` tokens; at least 1."""
    return max(1, count * block // UPSTREAM_BLOCK)
