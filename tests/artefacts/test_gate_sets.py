"""Gate sets: a column of gates may hold gate references, plan files, and nothing."""

import pandas as pd

from seerbench.artefacts import gate_sets


def test_only_gate_references_name_a_set():
    gates = pd.Series(["long:v1", "moa-long-0.50", "v2 (512, 2048)", None, float("nan"), "long:v12"], range(1, 7))
    assert gate_sets.is_set(gates, "v1").to_dict() == {1: True, 2: False, 3: False, 4: False, 5: False, 6: False}
    assert [gate_sets.job_of(gate) for gate in gates] == ["long", None, None, None, None, "long"]
    assert gate_sets.is_set(gates[:0], "v1").empty
