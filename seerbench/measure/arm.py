"""arm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from seerbench.methods.protocol import Method


@dataclass(frozen=True)
class Arm:
    """One line of a table: a method, and how its rows are labelled."""

    method: Method
    gate: str | None = None  # "<gates in the config>:<set>"
    recipe: str = "none"  # none | post | yarn | joint

    def labels(self) -> dict[str, Any]:
        return {"method": self.method.name, "gate": self.gate, "sparsity_requested": self.method.sparsity}
