"""Time what planning costs each method, on random inputs: `make bench`. conftest.py has the problem."""

import pytest
import torch
from conftest import CASE

from seerbench.core.problem import LayerContext
from seerbench.methods.gate import AttnGate
from seerbench.methods.gate_config import GateConfig
from seerbench.methods.registry import create


def no_rotation(positions):
    """Return a RoPE table that rotates nothing: the cost of a gate does not depend on the angles."""
    shape = (len(positions), CASE.head_dim)
    return torch.ones(shape, device=CASE.device), torch.zeros(shape, device=CASE.device)


@pytest.mark.parametrize("name", ["seer", "minference-aligned", "streaming", "random"])
def test_plan(timed, inputs, name):
    q, k, _ = inputs
    gate = AttnGate(GateConfig(), CASE.q_heads, CASE.kv_heads, CASE.head_dim).to(CASE.device)
    method = create(name, sparsity=0.9, **({"gates": [gate]} if name == "seer" else {}))
    layer = LayerContext(0, q, k, no_rotation)
    timed(lambda: method.plan(q, k, layer), sparsity=0.9)
