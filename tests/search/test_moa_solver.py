"""Test MoA's solver: influence by its definition, rules and their costs, and plans that no other plan beats."""

from itertools import product

import numpy as np
import pytest
import torch

from seerbench.baselines.moa import block_density, window_blocks, windows_and_sink
from seerbench.core.top_k import Refused, blocks_per_row
from seerbench.errors import ConfigError
from seerbench.search import moa_solver

LENGTHS, EXTENSION, VALIDATION, BLOCK = [256, 512, 1024], 2048, 1536, 16


def test_moa_influence_is_the_change_of_the_loss():
    """Compare the influence with the exact change of a linear loss, in float64, when a pair is masked."""
    tokens, block = 12, 4
    generator = torch.Generator().manual_seed(3)
    q, grad = torch.randn(2, 1, 2, tokens, 8, generator=generator)
    k, v = torch.randn(2, 1, 1, tokens, 8, generator=generator)
    found = moa_solver.layer_influence(q, k, v, grad, block)
    want = np.zeros((2, 3, 3))
    for head in range(2):
        future = torch.ones(tokens, tokens).triu(1).bool()
        scores = (q[0, head] @ k[0, 0].T * 8**-0.5).double().masked_fill(future, -torch.inf)
        weights, slope = scores.softmax(-1), (grad[0, head] @ v[0, 0].T).double()
        for i in range(tokens):
            for j in range(i + 1):
                if i == 0:
                    change = float(weights[0, 0] * slope[0, 0])  # The row has no other key to renormalise over.
                else:  # Without key j, the row is renormalised, and a linear loss changes by exactly this.
                    rest = weights[i].clone()
                    rest[j] = 0
                    change = float((rest / rest.sum() - weights[i]) @ slope[i])
                want[head, i // block, j // block] += abs(change)
    assert np.allclose(found.numpy(), want, rtol=1e-4, atol=1e-5)


def test_without_a_sparsity_the_rules_are_upstream_s():
    """Compare with upstream's formula for 2k, 4k and 8k: alphas in steps of 1024, betas in eighths."""
    want = [
        (alpha, beta)
        for alpha in np.linspace(-2048, 8192, (8192 + 2048) // 1024 + 1)
        for beta in np.linspace(0, 1, 9)
        if alpha + beta * 8192 <= 8192 and alpha + beta * 16384 <= 16384 and alpha + beta * 2048 > 0
    ]
    assert moa_solver.rule_grid([2048, 4096, 8192], 16384, 64).tolist() == [list(rule) for rule in want]
    assert len(want) == 48
    assert (0.0, 1.0) in want


def test_the_kv_density_counts_the_first_block():
    """Check hand-made numbers: at 64 blocks, alpha 512 and beta 1/8 keep 8 + 8 blocks and the first one.

    alpha -2048 and beta 3/4 keep 16 and the first; a band has at least one block, and at most all keys count.
    """
    rules = np.array([(512, 0.125), (-2048, 0.75), (0, 1 / 128), (0, 1)])
    assert moa_solver.kv_density(rules, 64, 64).tolist() == [17 / 64, 17 / 64, 2 / 64, 1]
    limits = moa_solver.bounds(rules, [4096], 64)
    assert limits.max_density.tolist() == [0.5]
    assert limits.min_density.tolist() == [0.45]


@pytest.mark.parametrize(("sparsity", "dense_rows"), [(None, 0), (0.5, 0), (0.9, 0), (0.7, 2), (None, 2)])
def test_a_rule_costs_the_influence_outside_the_mask_that_runs(sparsity, dense_rows):
    """Check every rule at every length, the extension included, against the mask that the method makes of it."""
    rules = moa_solver.rule_grid(LENGTHS, EXTENSION, BLOCK, sparsity, dense_rows, VALIDATION)
    for tokens in (*LENGTHS, EXTENSION):
        n = tokens // BLOCK
        influence = torch.rand(2, n, n, generator=torch.Generator().manual_seed(n)).double().tril()
        costs = moa_solver.rule_costs(influence, rules, BLOCK, sparsity, dense_rows)
        windows = window_blocks(*rules.T, tokens, BLOCK, sparsity, dense_rows)
        kept = windows_and_sink(windows, 1, tokens, BLOCK).to_dense()[0]
        outside = torch.einsum("hij,rij->hr", influence, (~kept).double())
        assert np.allclose(costs, outside.numpy(), rtol=1e-9, atol=1e-6)
        if dense_rows:
            assert kept[:, -dense_rows:].sum((1, 2)).eq(sum(range(n, n - dense_rows, -1))).all()


@pytest.mark.parametrize(("sparsity", "dense_rows"), [(0.5, 0), (0.7, 0), (0.9, 0), (0.5, 2), (0.9, 2)])
def test_streaming_llm_s_window_is_in_the_grid_at_each_length(sparsity, dense_rows):
    """Check that some rule keeps StreamingLLM's blocks wherever its rows keep two blocks or more."""
    rules = moa_solver.rule_grid(LENGTHS, EXTENSION, BLOCK, sparsity, dense_rows, VALIDATION)
    limits = moa_solver.bounds(rules, [*LENGTHS, EXTENSION], BLOCK, sparsity, dense_rows)
    found = 0
    for tokens in (*LENGTHS, VALIDATION, EXTENSION):
        try:
            counts = blocks_per_row(tokens // BLOCK, sparsity, dense_rows)
        except Refused:
            continue
        same = [moa_solver.is_streaming(rule, tokens, BLOCK, sparsity, dense_rows) for rule in rules]
        assert any(same) or counts.min() < 2
        found += any(same)
        if tokens == VALIDATION:  # Then the search compares it on text.
            assert any(same[rule] for rule in moa_solver.uniform_plans(limits))
    assert found >= 2
    assert not any(moa_solver.is_streaming(rule, 512, BLOCK, None) for rule in rules)


def test_moa_s_plan_keeps_the_bounds_and_spends_where_it_counts():
    """Check the number of rules per layer and the bounds, and that the only head with a cost gets wide windows."""
    rules = moa_solver.rule_grid(LENGTHS, EXTENSION, BLOCK)
    limits = moa_solver.bounds(rules, [*LENGTHS, EXTENSION], BLOCK)
    costs = []
    for tokens in LENGTHS:
        cost = np.ones((2, 4, len(rules))) * 1e-3
        cost[0, 2] = 1 - np.minimum((rules[:, 0] + rules[:, 1] * tokens) / tokens, 1.0)  # Only this head matters.
        costs.append(cost)
    plans = moa_solver.choose_rules(costs, limits)
    for plan in plans:
        assert all(len(set(layer)) <= 2 for layer in plan.tolist())
        kept = limits.density[:, plan].mean((1, 2))
        assert (kept <= 0.5 + 1e-6).all()
        assert (kept >= 0.9 * 0.5 - 1e-6).all()
    assert any((limits.density[:3, plan[0, 2]] == 1.0).all() for plan in plans)


@pytest.mark.parametrize(("sparsity", "dense_rows"), [(0.5, 0), (0.7, 0), (0.9, 0), (0.7, 2)])
def test_a_plan_realises_the_requested_sparsity_at_every_bounded_length(sparsity, dense_rows, monkeypatch):
    """Check plans for random costs: within 0.02 of the request, never above the budget, and 0.9 of it at least."""
    rules = moa_solver.rule_grid(LENGTHS, EXTENSION, BLOCK, sparsity, dense_rows)
    limits = moa_solver.bounds(rules, [*LENGTHS, EXTENSION], BLOCK, sparsity, dense_rows)
    bounded = limits.max_density < 1
    assert bounded[-1]
    assert bounded.sum() >= 1 + (sparsity < 0.9 and not dense_rows)
    rng = np.random.default_rng(0)
    cost = rng.exponential(1, (1, 2, 4, 1)) * np.exp(
        -limits.density[:1, None, None] / rng.uniform(0.1, 1, (1, 2, 4, 1))
    )
    monkeypatch.setattr(moa_solver, "MAX_NODES", (20, 1))
    for plan in moa_solver.choose_rules(list(cost), limits):
        windows = [
            window_blocks(*rules[plan].reshape(-1, 2).T, tokens, BLOCK, sparsity, dense_rows)
            for tokens in (*LENGTHS, EXTENSION)
        ]
        kept = np.array([block_density(window).mean() for window in windows])[bounded]
        assert (kept <= 1 - sparsity + 1e-6).all()
        assert (kept >= max(0.9 * (1 - sparsity), 1 - sparsity - 0.02) - 1e-6).all()


def random_program(seed, layers, heads, rules, bounded):
    """Return random costs at two lengths, and bounds at `bounded` of two lengths, for rules of growing density."""
    rng = np.random.default_rng(seed)
    density = np.sort(rng.uniform(0.05, 1, (2, rules)), -1)
    most = np.where(np.arange(2) < 2 - bounded, 1.0, [0.5, 0.45])
    least = np.where(most < 1, most - 0.1, 0.0)
    limits = moa_solver.Bounds(density, most, least, least, most)
    costs = [np.sort(rng.exponential(1, (layers, heads, rules)), -1)[..., ::-1].copy() for _ in range(2)]
    return costs, limits


def all_plans(costs, limits):
    """Return every plan within the bounds with at most two rules per layer, and its scaled cost at each length."""
    layers, heads, rules = costs[0].shape
    columns = np.array([column for column in product(range(rules), repeat=heads) if len(set(column)) <= 2])
    plans = columns[np.array(list(product(range(len(columns)), repeat=layers)))]  # [plans, layers, heads]
    kept = limits.density[:, plans].mean((2, 3))
    within = ((kept <= limits.max_density[:, None]) & (kept >= limits.min_density[:, None])).all(0)
    where = np.arange(layers)[:, None], np.arange(heads)
    return plans[within], np.stack([(cost / cost.max())[*where, plans[within]].sum((1, 2)) for cost in costs])


@pytest.mark.parametrize(
    ("seed", "layers", "heads", "rules", "bounded"), [(1, 2, 3, 5, 2), (2, 2, 2, 6, 1), (3, 2, 3, 4, 1)]
)
def test_the_programs_reach_the_optimum_over_all_assignments(seed, layers, heads, rules, bounded):
    """Enumerate small programs: the best plan at each length, and the best at one below a ceiling of the other."""
    costs, limits = random_program(seed, layers, heads, rules, bounded)
    _, values = all_plans(costs, limits)
    assert values.shape[1] > 10
    program = moa_solver.Program(costs, limits)
    for target in (0, 1):
        best = program.values(program.solve(target, np.full(2, np.inf)))[target]
        assert best == pytest.approx(values[target].min(), rel=1e-6)
        ceilings = np.full(2, np.inf)
        ceilings[1 - target] = np.median(values[1 - target])
        below = program.values(program.solve(target, ceilings))
        least = values[target][values[1 - target] <= ceilings[1 - target]].min()
        assert least * (1 - 1e-6) <= below[target] <= least * 1.01
        assert below[1 - target] <= ceilings[1 - target] * (1 + 1e-5)


def test_every_length_is_an_objective_of_its_own(monkeypatch):
    """Check that each length is minimised under ceilings of the others, and that no returned plan beats another."""
    costs, limits = random_program(1, 2, 3, 5, 2)
    asked = set()
    solve = moa_solver.Program.solve

    def watched(program, target, ceilings):
        asked.add((target, tuple(np.isfinite(ceilings))))
        return solve(program, target, ceilings)

    monkeypatch.setattr(moa_solver.Program, "solve", watched)
    plans = moa_solver.choose_rules(costs, limits)
    assert asked == {(0, (False, False)), (1, (False, False)), (0, (False, True)), (1, (True, False))}
    values = np.array([moa_solver.Program(costs, limits).values(plan) for plan in plans])
    assert len(plans) > 1
    for value in values:
        assert not ((values <= value).all(1) & (values < value).any(1)).any()


def test_bounds_that_no_plan_keeps_are_an_error():
    costs, limits = random_program(0, 1, 3, 4, 2)
    tight = moa_solver.Bounds(limits.density, *[np.full(2, 0.01)] * 4)
    with pytest.raises(ConfigError, match="lower sparsity"):
        moa_solver.choose_rules(costs, tight)
