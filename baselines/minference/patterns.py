"""patterns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

VERTICAL, SLASH = 512, 2048  # upstream config Llama_3.1_8B_Instruct_128k_..._v2.json, every head
V1 = "minference-llama-3.1-8b-v1.json"  # upstream's first file for that model, its scores rounded
KINDS = ("vertical_and_slash", "stream_llm", "block_sparse")  # the names in upstream's files


@dataclass(frozen=True)
class Pattern:
    """What a head does. first, second: columns, diagonals; or first keys, window; or blocks, unused."""

    kind: str
    first: int
    second: int
    score: float = 0.0


ABSENT = Pattern("vertical_and_slash", 1000, 6096)  # upstream's, for a head that its file does not name


def load_patterns(path: Path | str) -> list[dict[int, Pattern]]:
    """Upstream's file: a list over layers of {"head": [kind, first, second, score]}; ValueError for another."""
    content = json.loads(Path(path).read_text())
    if not isinstance(content, list) or not all(isinstance(layer, dict) for layer in content):
        raise ValueError(f"{path} is no MInference configuration: expected a list of objects over heads")
    layers = []
    for number, layer in enumerate(content):
        heads = {}
        for head, entry in layer.items():
            if len(entry) < 3 or entry[0] not in KINDS:
                raise ValueError(
                    f"{path}: layer {number}, head {head}: expected [{' | '.join(KINDS)}, int, int, score]"
                )
            heads[int(head)] = Pattern(entry[0], int(entry[1]), int(entry[2]), float((*entry, 0.0)[3]))
        layers.append(heads)
    return layers


def save_patterns(path: Path, layers: Sequence[Sequence[Pattern]]) -> None:
    """Patterns of each layer and head in upstream's format."""
    content = [
        {str(head): [p.kind, p.first, p.second, p.score] for head, p in enumerate(layer)} for layer in layers
    ]
    path.write_text(json.dumps(content, indent=1) + "\n")


def scaled_budgets(patterns: Sequence[Pattern], factor: float) -> list[Pattern]:
    """Return the patterns with both budgets multiplied by `factor` and rounded, each at least 1."""

    def times(count: int) -> int:
        return max(1, round(count * factor))

    return [replace(p, first=times(p.first), second=times(p.second)) for p in patterns]


def _scaled(count: int, block: int) -> int:
    return max(1, count * block // 64)
