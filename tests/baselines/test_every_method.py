"""Every method under one set of tests: sparsity, agreement with the reference, determinism, causality."""

from contextlib import suppress
from dataclasses import replace
from itertools import product

import pytest
import torch
import yaml

from seerbench.artefacts import colors
from seerbench.core.block_mask import BlockMask, causal_blocks
from seerbench.core.problem import LayerContext
from seerbench.core.tolerance import assert_no_worse_than_rounding
from seerbench.core.top_k import top_k_density
from seerbench.errors import Refused
from seerbench.methods.block_sparse_kernels import DENSE
from seerbench.methods.protocol import realised_sparsity
from seerbench.methods.registry import catalogue, create
from seerbench.paths import ROOT

TOKENS, BLOCK = 500, 16
# Methods that run on a GPU alone, or read every key.
NOT_HERE = ("minference-upstream", *DENSE)
OURS = [card.name for card in catalogue().values() if card.module.startswith("seerbench.")]
METHODS = [name for name in OURS if name not in NOT_HERE]  # a new file in baselines/ is tested without more ado
# A method that keeps or skips whole windows, so it may stay further from the budget than others.
COARSE = ("moa",)
# Methods that always keep more than the 30% of 32 blocks at which the others are tested.
SPARSITY = {"flashprefill": 0.5, "flashprefill-v2": 0.5}
# Sparsities at which a method always keeps too many blocks, or at which its steps of whole tiles are too coarse.
BEYOND = [(name, 0.8) for name in ("flashprefill", "flashprefill-v2", "flexprefill", "minference")]
BEYOND += [("minference", 0.6)]
# Methods whose plan is not a BlockMask.
OWN_PLAN = ("minference",)


def rope(positions):
    angles = positions[:, None] * 10_000.0 ** (-torch.arange(0, 16, 2) / 16)
    return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()


def layer_of(qkv):
    return LayerContext(1, qkv[0], qkv[1], rope)


def test_methods_are_found():
    assert {"seer", "streaming", "random", "minference", "oracle", "moa", "xattention"} <= set(METHODS)


@pytest.mark.parametrize("preset", ["speed", "gpu"])
def test_the_gpu_presets_time_every_method_of_the_palette(preset):
    """Check that every method with a color of its own is timed; a new method need not be."""
    text = (ROOT / "config" / f"{preset}.yaml").read_text(encoding="utf-8")
    arms = yaml.safe_load(text)["latency"]["sweeps"]["methods"]["arms"]
    ours = {name for name in OURS if name in colors.METHODS}
    # The method `dense` is fa2 on a GPU. The second oracle plans as slowly as the first, and nobody would use it.
    assert ours - {arm["method"] for arm in arms} == {"dense", "oracle-mass"}
    assert any(arm.get("kernel") == "fa4-sparse" for arm in arms)
    gates = {arm["gate"] for arm in arms if "gate" in arm}
    assert preset == "speed" or gates == {
        "long:v1",
        "block128:v1",
        "long:v2",
        "long:token",
    }  # speed's are untrained v1 gates
    assert any(arm.get("mean_correction") for arm in arms)


@pytest.mark.parametrize("name", METHODS)
def test_sparsity_zero_is_dense_attention(name, make, qkv):
    method = make(name, 0.0)
    plan = method.plan(qkv[0], qkv[1], layer_of(qkv))
    assert realised_sparsity(plan) == 0.0
    dense = create("dense")
    out = method.attend(*qkv, plan)
    want = dense.attend(*qkv, dense.plan(*qkv[:2], LayerContext()))
    assert torch.allclose(out, want, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("sparsity", [0.4, 0.6, 0.8])
def test_realised_sparsity_is_that_of_the_top_k_rule(name, sparsity, make, qkv):
    """Check that all methods keep about the same number of blocks at one requested sparsity."""
    method = make(name, sparsity)
    try:
        plans = [method.plan(qkv[0], qkv[1], replace(layer_of(qkv), index=index)) for index in (0, 1)]
    except Refused:
        assert (name, sparsity) in BEYOND
        return
    assert (name, sparsity) not in BEYOND
    density = sum(plan.density() for plan in plans) / 2  # MoA spends more on one layer than on another
    budget = top_k_density(-(-TOKENS // BLOCK), sparsity)
    assert density == pytest.approx(budget, abs=0.1 if name in COARSE else 0.02)
    plan = plans[1]
    assert float(plan.head_density().mean()) == pytest.approx(plan.density())
    if name in OWN_PLAN:
        return
    # There are 32 rows of blocks, so 33 / 64 of the square is causal.
    assert plan.density() == pytest.approx(float(plan.to_dense().float().mean()) * 2 * 32 / 33)
    assert isinstance(plan, BlockMask)
    assert (plan.to_dense() & ~causal_blocks(TOKENS, BLOCK, BLOCK)).sum() == 0


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("tokens", [TOKENS, 481])
def test_attend_is_attention_over_the_plan(name, tokens, make, qkv):
    """Compare with float64 under the plan's own token mask: GQA, a partial last block and causality.

    Methods that add the means of skipped blocks are compared with their own definition.
    """
    q, k, v = (x[:, :, :tokens] for x in qkv)
    method = make(name, SPARSITY.get(name, 0.7))
    plan = method.plan(q, k, LayerContext(1, q, k, rope))
    exact, rounded = (method.exact(q, k, v, plan, dtype) for dtype in (torch.float64, q.dtype))
    assert_no_worse_than_rounding(method.attend(q, k, v, plan), exact, rounded)


@pytest.mark.parametrize("name", METHODS)
def test_lists_that_are_made_without_a_check_pass_it(name, make):
    """Draw lengths around whole blocks, sparsities and inputs, among them constant and very large ones."""
    methods = [make(name, sparsity) for sparsity in (0.0, 0.5, 0.9)]
    for seed, (tokens, method) in enumerate(product([1, 15, 16, 17, 49, 130], methods)):
        generator = torch.Generator().manual_seed(seed)
        q = torch.randn(2, 4, tokens, 16, generator=generator) * [1, 0, 100][seed // 3 % 3]
        k = torch.randn(2, 2, tokens, 16, generator=generator)
        with suppress(Refused):  # few blocks may not meet the request
            method.plan(q, k, LayerContext(1, q, k, rope)).check()


@pytest.mark.parametrize("name", METHODS)
def test_plans_are_deterministic(name, make, qkv):
    first, second = (make(name, SPARSITY.get(name, 0.7)).plan(qkv[0], qkv[1], layer_of(qkv)) for _ in range(2))
    assert torch.equal(first.to_token_mask(), second.to_token_mask())


@pytest.mark.parametrize("name", ["streaming", "random", "moa", "seer", "oracle"])
def test_the_past_does_not_depend_on_the_future(name, make, qkv):
    """Check causality: other tokens in the last third do not change the output of earlier rows.

    MInference is left out on purpose: its plan for every row is estimated from the last queries.
    """
    cut = 20 * BLOCK
    other = [x.clone() for x in qkv]
    for x in other:
        x[:, :, cut:] = torch.randn_like(x[:, :, cut:])
    method = make(name, SPARSITY.get(name, 0.7))
    rows = []
    for q, k, v in (qkv, other):
        plan = method.plan(q, k, LayerContext(1, q, k, rope))
        rows.append(method.attend(q, k, v, plan)[:, :, :cut])
    assert torch.equal(*rows)


@pytest.mark.parametrize(
    "name", ["minference", "minference-aligned", "xattention", "flexprefill", "flashprefill", "flashprefill-v2"]
)
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_a_method_with_its_threshold_plans_the_same_without_searching(name, sparsity, make, qkv):
    """Check that a method with its threshold keeps the same blocks, and no longer requests a sparsity."""
    method = make(name, sparsity)
    fixed = method.with_threshold_for(*qkv[:2], LayerContext())
    assert fixed.sparsity is None
    plan, searched = (each.plan(*qkv[:2], LayerContext()) for each in (fixed, method))
    if name == "minference-aligned":  # a threshold keeps a diagonal of all heads, or skips it
        assert plan.density() == pytest.approx(searched.density(), abs=2 / 32)
    else:
        assert torch.equal(plan.to_token_mask(), searched.to_token_mask())
