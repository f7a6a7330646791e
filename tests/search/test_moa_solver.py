"""Test MoA's solver: influence by its definition, rules and their costs, and plans that no other plan beats."""

from itertools import product

import numpy as np
import pytest
import torch

from seerbench.errors import ConfigError
from seerbench.search import moa_solver


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


def test_moa_s_rules_and_their_costs():
    rules = moa_solver.rule_grid([128, 256, 512], 1024, 16)
    spans = rules[:, :1] + rules[:, 1:] * np.array([128, 512, 1024])
    assert (spans[:, 0] > 0).all()
    assert (spans[1:, 1:] <= np.array([512, 1024])).all()
    assert [0.0, 1.0] in rules.tolist()  # Dense attention is one of the rules.
    assert (rules[:, 0] < 0).any()  # Some windows grow faster than the context.
    influence = torch.rand(3, 16, 16).tril()
    costs = moa_solver.rule_costs(influence, rules, 16)
    for rule, (alpha, beta) in enumerate(rules):
        band = max(1, int(alpha // 16 + np.floor(beta * 16 + 1e-12))) if beta in (0, 0.5, 1) else None
        if band is None:
            continue
        hidden = [(i, j) for i in range(16) for j in range(1, i + 1) if i - j >= band]
        for head in range(3):
            want = sum(float(influence[head, i, j]) for i, j in hidden)
            assert costs[head, rule] == pytest.approx(want, abs=1e-4)


def test_moa_s_plan_keeps_the_bounds_and_spends_where_it_counts():
    """Check the number of rules per layer and the bounds, and that the only head with a cost gets wide windows."""
    lengths = [128, 256, 512, 1024]
    rules = moa_solver.rule_grid(lengths[:3], lengths[3], 16)
    limits = moa_solver.bounds(rules, lengths, 16)
    costs = []
    for tokens in lengths[:3]:
        cost = np.ones((2, 4, len(rules))) * 1e-3
        reach = np.minimum((rules[:, 0] + rules[:, 1] * tokens) / tokens, 1.0)
        cost[0, 2] = 1 - reach  # Only this head depends on its window.
        costs.append(cost)
    plans = moa_solver.choose_rules(costs, limits)
    for plan in plans:
        assert all(len(set(layer)) <= 2 for layer in plan.tolist())
        kept = limits.density[:, plan].mean((1, 2))
        assert (kept <= 0.5 + 1e-6).all()
        assert (kept >= 0.9 * 0.5 - 1e-6).all()
    assert limits.density[0, plans[0][0, 2]] == 1.0  # The first plan is best at the shortest length.
    assert any((limits.density[:3, plan[0, 2]] == 1.0).all() for plan in plans)


def test_moa_s_plans_are_not_beaten_by_any_choice_of_rules():
    """Compare with every assignment of a small case: none within the bounds costs less at the first length."""
    rng = np.random.default_rng(1)
    density = np.array([[0.2, 0.5, 1.0], [0.3, 0.6, 1.0]])
    limits = moa_solver.Bounds(density, np.array([0.6, 0.7]), np.zeros(2))
    costs = [np.sort(rng.random((1, 3, 3)), -1)[..., ::-1].copy() for _ in range(2)]
    scaled = [cost / cost.max() for cost in costs]
    plans = moa_solver.choose_rules(costs, limits)
    best = np.inf
    for plan in product(range(3), repeat=3):
        if len(set(plan)) <= 2 and (density[:, list(plan)].mean(1) <= limits.max_density + 1e-9).all():
            best = min(best, sum(scaled[0][0, head, rule] for head, rule in enumerate(plan)))
    found = min(sum(scaled[0][0, head, rule] for head, rule in enumerate(plan[0])) for plan in plans)
    assert found <= best * (1 + 2 * moa_solver.MIP_GAP) + 1e-9
    with pytest.raises(ConfigError, match="lower sparsity"):
        moa_solver.choose_rules(costs, moa_solver.Bounds(density, np.array([0.1, 0.1]), np.zeros(2)))


def test_no_head_keeps_less_than_a_quarter_of_a_bound():
    """Choose rules by costs for which the grid's shortest rule is best, and check that no head gets it."""
    lengths, block = [256, 512, 1024], 16
    rules = moa_solver.rule_grid(lengths, 2048, block)
    costs = [np.broadcast_to(-np.arange(len(rules)) / n, (2, 4, len(rules))) for n in lengths]
    for sparsity in (None, 0.5, 0.8):
        limits = moa_solver.bounds(rules, [*lengths, 2048], block, sparsity)
        kept = np.concatenate([limits.density[:, choice] for choice in moa_solver.choose_rules(costs, limits)], 1)
        bound = limits.max_density < 1
        assert (kept[bound] >= 0.25 * limits.max_density[bound, None, None]).all()
        assert (kept[bound].mean((1, 2)) <= limits.max_density[bound] + 1e-6).all()
        assert (limits.density[bound] < 0.25 * limits.max_density[bound, None]).any()  # Some are left out.
