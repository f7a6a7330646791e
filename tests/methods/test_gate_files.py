"""Files of gates."""

import pytest
import torch

from seerbench.methods.gate import AttnGate
from seerbench.methods.gate_config import GateConfig
from seerbench.methods.gate_files import gate_set_names, load_gates, save_gates


def test_gates_come_back_from_their_file(tmp_path):
    sets = {
        "v1": [AttnGate(GateConfig(block=16), 4, 2, 16) for _ in range(2)],
        "v2": [
            AttnGate(GateConfig(block=16, k_pool="maxminavg", projection="single", recipe="v2"), 4, 2, 16)
            for _ in range(2)
        ],
    }
    path = tmp_path / "gates.safetensors"
    save_gates(path, sets)
    assert gate_set_names(path) == ["v1", "v2"]
    for name, gates in sets.items():
        for before, after in zip(gates, load_gates(path, name), strict=True):
            assert before.config == after.config
            assert all(torch.equal(x, y) for x, y in zip(before.parameters(), after.parameters(), strict=True))
    with pytest.raises(ValueError, match="it has v1, v2"):
        load_gates(path, "v9")
