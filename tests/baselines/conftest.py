"""Inputs of one layer, and a function that makes a method at a sparsity."""

import numpy as np
import pytest
import torch

from seerbench.baselines.moa import save_plan
from seerbench.methods.gate import AttnGate
from seerbench.methods.gate_config import GateConfig
from seerbench.methods.registry import create
from seerbench.search import moa_solver

TOKENS, BLOCK = 500, 16


@pytest.fixture(scope="module")
def qkv():
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(1, 4, TOKENS, 16, generator=generator),
        *torch.randn(2, 1, 2, TOKENS, 16, generator=generator),
    )


@pytest.fixture(scope="module")
def make(tmp_path_factory, qkv):
    folder = tmp_path_factory.mktemp("plans")
    lengths = [128, 256, 512]
    influence = [torch.rand(4, n // BLOCK, n // BLOCK, generator=torch.Generator().manual_seed(n)) for n in lengths]
    torch.manual_seed(0)
    gates = [AttnGate(GateConfig(block=BLOCK), 4, 2, 16) for _ in range(2)]

    def plan_at(sparsity):
        # The plan has a density bound at the test's length only.
        rules = moa_solver.rule_grid(lengths, 1024, BLOCK, sparsity)
        limits = moa_solver.bounds(rules, [TOKENS], BLOCK, sparsity)
        costs = np.stack([moa_solver.rule_costs(influence[-1], rules, BLOCK, sparsity)] * 2)
        chosen = moa_solver.choose_rules([costs], limits)[0]
        save_plan(folder / f"{sparsity}.json", rules[chosen][..., 0], rules[chosen][..., 1])
        return folder / f"{sparsity}.json"

    def build(name, sparsity):
        if name == "moa":
            return create(name, plan=plan_at(sparsity), sparsity=sparsity, block=BLOCK)
        # Upstream's minimum would make FlexPrefill dense at this length.
        options = {"seer": {"gates": gates}, "flexprefill": {"block": BLOCK, "min_budget": 4 * BLOCK}}
        return create(name, sparsity=sparsity, **options.get(name, {"block": BLOCK}))

    return build
