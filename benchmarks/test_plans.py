"""What planning costs each method on a CPU, on random inputs: `make bench`. See test_kernels.py."""

import pytest
import torch

from seerbench.attention import Case, Layer
from seerbench.gate import AttnGate, GateConfig
from seerbench.latency import random_inputs
from seerbench.registry import create

CASE = Case("cpu", "float32", batch=1, q_heads=4, kv_heads=2, head_dim=64, context=4096)


def no_rotation(positions):
    """RoPE that turns nothing: the gate's cost does not depend on the angles."""
    shape = (len(positions), CASE.head_dim)
    return torch.ones(shape), torch.zeros(shape)


@pytest.mark.parametrize("name", ["seer", "minference-aligned", "streaming", "random"])
def test_plan(benchmark, name):
    q, k, _ = random_inputs(CASE, seed=0)
    gates = (
        {"gates": [AttnGate(GateConfig(), CASE.q_heads, CASE.kv_heads, CASE.head_dim)]} if name == "seer" else {}
    )
    method = create(name, sparsity=0.9, **gates)
    layer = Layer(0, q, k, no_rotation)
    benchmark.extra_info.update(vars(CASE) | {"sparsity": 0.9})
    with torch.no_grad():
        benchmark.pedantic(lambda: method.plan(q, k, layer), rounds=10, warmup_rounds=2)
