"""Define an arm: a method, and how it decodes, with the labels of its rows.

steps/arms.py makes arms from a preset's jobs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from seerbench.core.top_k import require_budget
from seerbench.measure.names import DENSE_DECODE
from seerbench.methods.decode_protocol import DecodeMethod
from seerbench.methods.protocol import Method, selection_columns
from seerbench.rows.gate_ref import GateRef


@dataclass(frozen=True)
class Arm:
    """A method and its labels.

    Attributes:
        method: the method, at one requested sparsity.
        gate: the gate set that it uses, if any.
        recipe: none, post, yarn or joint: how model and gates were trained.
        decode: the method for new tokens after the method's prefill; None: dense decoding, which rows do not name.
        decode_gate: the gate set that it uses, if any.
    """

    method: Method
    gate: GateRef | None = None
    recipe: str = "none"
    decode: DecodeMethod[Any] | None = None
    decode_gate: GateRef | None = None

    def labels(self) -> dict[str, Any]:
        """Return the columns that say which method it is, with which gate and selection.

        They are method, gate (without a gate: the method's configuration), sparsity_requested, and those of
        `selection_columns`.
        """
        gate = self.method.configuration if self.gate is None else str(self.gate)
        fixed = {"method": self.method.name, "gate": gate, "sparsity_requested": self.method.sparsity}
        return fixed | selection_columns(self.method)

    def decode_labels(self) -> dict[str, Any]:
        """Return the columns that say how new tokens are decoded; {} if the arm does not."""
        if self.decode is None:
            return {}
        dense = self.decode.name == DENSE_DECODE
        return {
            "decode": self.decode.name,
            "decode_gate": None if self.decode_gate is None else str(self.decode_gate),
            "decode_block": None if dense else self.decode.block,
            "decode_budget": self.decode.budget,
            "decode_threshold": self.decode.threshold,
        }

    def require_request(self, realised: float) -> None:
        """Raise Refused where a realised sparsity is not the requested one (core.top_k.require_budget)."""
        if self.method.sparsity is not None:
            why = "its plans keep more blocks" if realised < self.method.sparsity else "its plans keep fewer blocks"
            require_budget(1 - realised, self.method.sparsity, f"{why} in this model at this length")
