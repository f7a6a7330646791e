"""Gate sets: find the lines of a frame by the gate job and the gate set that their column `gate` names."""

from __future__ import annotations

import pandas as pd

from seerbench.rows.gate_ref import GateRef


def reference(gate: object) -> GateRef | None:
    """Return the gate reference in a cell of a column `gate`, or None.

    The column is empty for methods without a gate, and names a plan file for MoA and MInference.
    """
    return GateRef.parse(gate) if isinstance(gate, str) and ":" in gate else None


def set_of(gate: object) -> str | None:
    """Return the gate set that a cell of a column `gate` names, or None."""
    gate_reference = reference(gate)
    return gate_reference.set if gate_reference else None


def job_of(gate: object) -> str | None:
    """Return the gate job that a cell of a column `gate` names, or None."""
    gate_reference = reference(gate)
    return gate_reference.job if gate_reference else None


def is_set(gates: pd.Series, name: str) -> pd.Series:
    """Return, for each cell of a column `gate`, whether it names the gate set `name`."""
    return pd.Series([set_of(gate) == name for gate in gates], gates.index, dtype=bool)
