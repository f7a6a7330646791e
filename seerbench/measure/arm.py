"""One line of an experiment's table: a method and its labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from seerbench.methods.protocol import Method
from seerbench.rows.gate_ref import GateRef


@dataclass(frozen=True)
class Arm:
    """One line of a table: a method, and how its rows are labelled."""

    method: Method
    gate: GateRef | None = None
    recipe: str = "none"  # none | post | yarn | joint
    source: str | None = None  # of a method without a gate: the plan file or patterns that decide its choice

    def labels(self) -> dict[str, Any]:
        """Return the columns method, gate (without a gate: the source) and sparsity_requested."""
        gate = self.source if self.gate is None else str(self.gate)
        return {"method": self.method.name, "gate": gate, "sparsity_requested": self.method.sparsity}
