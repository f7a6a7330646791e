"""Define an arm: a method with the labels of its rows. steps/arms.py makes arms from a preset's jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from seerbench.methods.protocol import Method
from seerbench.rows.gate_ref import GateRef


@dataclass(frozen=True)
class Arm:
    """A method and its labels.

    Attributes:
        method: the method, at one requested sparsity.
        gate: the gate set that it uses, if any.
        recipe: none, post, yarn or joint: how model and gates were trained.
    """

    method: Method
    gate: GateRef | None = None
    recipe: str = "none"

    def labels(self) -> dict[str, Any]:
        """Return the columns method, gate (without a gate: the method's configuration) and sparsity_requested."""
        gate = self.method.configuration if self.gate is None else str(self.gate)
        return {"method": self.method.name, "gate": gate, "sparsity_requested": self.method.sparsity}
