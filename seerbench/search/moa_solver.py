"""Choose MoA's rules for every head by integer programs, from what masking each block would cost.

    layer_influence   attention of one layer and its gradient -> change of the loss per masked block, to first order
    rule_costs        influence -> what each rule (alpha, beta) would hide of it, per head
    bounds            a requested sparsity -> what a plan may keep at each length
    choose_rules      costs and bounds -> the Pareto-optimal plans: one rule per head, at most two per layer

No model runs here: search/moa.py computes the gradients first and compares the resulting plans on text afterwards.
Source: arXiv:2406.14909, section 4 and appendix. The card in baselines/moa.py lists what is ported and what
differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seerbench.baselines.moa import block_density, reserve_for, window_blocks
from seerbench.core.block_mask import block_count
from seerbench.core.top_k import top_k_density
from seerbench.errors import ConfigError

DEFAULT_KV_DENSITY = 0.5  # Upstream bounds the mean span over the context by this.
# A rule keeps at least this share of a bound. Upstream's shortest rule is 1/8 of the context at a bound of 1/2.
MIN_RULE_DENSITY = 0.25
MIN_BUDGET_SHARE = 0.9  # A plan uses at least this share of its bound, as upstream's does.
# A length has a bound only if the bound is at least this many times the density of the shortest rule. A bound that
# is closer would forbid every rule that grows with the context.
MIN_BOUND_RATIO = 1.5
# Values of beta in the grid of rules. Upstream's are the eighths; sparsities near 90% need the finer ones.
BETAS = (0.0, 1 / 32, 1 / 16, *(step / 8 for step in range(1, 9)))
# A key that leaves less than this weight to the other keys of its row is taken for the row's only key.
MIN_REMAINING_WEIGHT = 1e-6
INTERVALS = 4  # The epsilon-constraint method divides the range of each objective into this many intervals.
# Prices of density, in units of the layer's largest cost. Assignments that are best at one of them are candidates.
DENSITY_PRICES = np.geomspace(1e-3, 10.0, 8)
PAIRS_PER_PRICE = 2  # Each price contributes this many pairs of rules.
MAX_SPLITS = 8  # Within a pair, the longer rule goes to at most this many different numbers of heads, and to none.
MIP_GAP = 0.01  # HiGHS may stop at this relative distance from the optimum.
MAX_NODES = 1000  # HiGHS stops after this many nodes.
TOLERANCE = 1e-9  # Rounding of densities and costs does not violate a constraint.


def layer_influence(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, block: int) -> Tensor:
    """Return how much the loss changes if each block of attention weights is masked, to first order.

    A pair (i, j) of query and key is masked and the weights of its row are renormalised. With A = softmax(scores)
    and G = dLoss / dA, the loss changes by A_ij / (1 - A_ij) * (sum_n G_in A_in - G_ij), and by A_ij G_ij if j is
    the only key of its row, as in row 0. Absolute changes are summed over the pairs of a block and over the batch.

    Args:
        q: [B, Hq, N, D] after RoPE.
        k: [B, Hk, N, D] after RoPE; `v` has the same shape.
        grad: dLoss / dOutput, [B, Hq, N, D].
        block: tokens per block.

    Returns:
        float32 [Hq, n, n] with n blocks; zero above the diagonal.
    """
    tokens, group = q.shape[2], q.shape[1] // k.shape[1]
    future = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).triu(1)
    influence = []
    for head in range(q.shape[1]):
        key, value = (x[:, head // group].float() for x in (k, v))
        scores = (q[:, head].float() @ key.mT) * q.shape[-1] ** -0.5
        weights = scores.masked_fill_(future, -torch.inf).softmax(-1)
        slope = grad[:, head].float() @ value.mT
        remaining = 1 - weights
        mean = (weights * slope).sum(-1, keepdim=True)
        renormalised = weights / remaining.clamp_min(MIN_REMAINING_WEIGHT) * (mean - slope)
        change = torch.where(remaining > MIN_REMAINING_WEIGHT, renormalised, weights * slope).abs_().sum(0)
        influence.append(_sum_blocks(change, block))
    return torch.stack(influence)


def _sum_blocks(x: Tensor, block: int) -> Tensor:
    """Sum a map [N, N] over blocks: [n, n]."""
    n, pad = block_count(x.shape[-1], block), -x.shape[-1] % block
    return F.pad(x, (0, pad, 0, pad)).view(n, block, n, block).sum((1, 3))


def rule_grid(lengths: Sequence[int], extension: int, block: int) -> np.ndarray:
    """Return the rules (alpha, beta) of the search, float64 [R, 2]; a rule spans alpha + beta * N tokens.

    Alpha runs from minus the shortest length to the longest in steps of half the shortest, and beta through BETAS.
    A span must be positive at the shortest length, and at most the context at the longest length and the extension.
    The first rule is the shortest that a mask can express: two blocks at every context.

    Args:
        lengths: the profiled lengths, in tokens.
        extension: the longer length, in tokens, at which plans are bounded and not profiled.
        block: tokens per block.
    """
    shortest, longest = min(lengths), max(lengths)
    alphas = np.arange(-shortest, longest + 1, shortest // 2)
    fits = [
        (float(alpha), beta)
        for alpha, beta in product(alphas, BETAS)
        if alpha + beta * shortest > 0 and all(alpha + beta * n <= n for n in (longest, extension))
    ]
    return np.array([(2.0 * block, 0.0), *fits])


def rule_costs(influence: Tensor, rules: np.ndarray, block: int) -> np.ndarray:
    """Return the influence that each rule hides, float64 [Hq, R].

    A rule keeps the first block of keys and a band of blocks at the diagonal, and hides the others.

    Args:
        influence: [Hq, n, n] of one layer, from `layer_influence`.
        rules: [R, 2], from `rule_grid`.
        block: tokens per block.
    """
    n = influence.shape[-1]
    rest = influence.clone()
    rest[..., 0] = 0
    at_distance = torch.stack([rest.diagonal(-d, -2, -1).sum(-1) for d in range(n)], -1).double().cpu().numpy()
    beyond = np.concatenate([at_distance[:, ::-1].cumsum(-1)[:, ::-1], np.zeros((len(at_distance), 1))], -1)
    band = np.floor(rules[:, 0] // block + rules[:, 1] * n).astype(int)
    return beyond[:, np.clip(band, 1, n)]


@dataclass(frozen=True)
class Bounds:
    """What a plan may keep at each length. The profiled lengths come first and the extension last."""

    density: np.ndarray  # [lengths, R], of each rule
    max_density: np.ndarray  # [lengths], of a plan: the mean over layers and heads; 1 where there is no bound
    min_density: np.ndarray  # [lengths]


def bounds(rules: np.ndarray, lengths: Sequence[int], block: int, sparsity: float | None = None) -> Bounds:
    """Return the bounds of a plan, from MIN_BUDGET_SHARE of a largest density to that density.

    Without a sparsity, the density is the mean span over the context, and its bound is DEFAULT_KV_DENSITY. With
    one, it is the share of causal blocks that the mask keeps, and its bound is what the top-k rule keeps. The last
    length always has a bound; any other length has one only if MIN_BOUND_RATIO allows it.

    Args:
        rules: [R, 2], from `rule_grid`.
        lengths: the profiled lengths and the extension, in tokens.
        block: tokens per block.
        sparsity: requested share of skipped causal blocks, or None.
    """
    if sparsity is None:
        span = rules[:, 0] + rules[:, 1] * np.asarray(lengths)[:, None]
        density = np.minimum(span / np.asarray(lengths)[:, None], 1.0)
        budget = np.full(len(lengths), DEFAULT_KV_DENSITY)
    else:
        counts = [block_count(length, block) for length in lengths]
        reserve = reserve_for(sparsity)
        windows = [window_blocks(rules[:, 0], rules[:, 1], length, block, reserve) for length in lengths]
        density = np.stack([block_density(window, n) for window, n in zip(windows, counts)])
        budget = np.array([top_k_density(n, sparsity) for n in counts])
    floor = density.min(1)
    is_bounded = budget >= MIN_BOUND_RATIO * floor
    is_bounded[-1] = True
    max_density = np.where(is_bounded, np.maximum(budget, floor), 1.0)
    min_density = np.where(is_bounded, MIN_BUDGET_SHARE * max_density, 0.0)
    return Bounds(density, max_density, np.ones_like(max_density) if sparsity == 0 else min_density)


def choose_rules(costs: Sequence[np.ndarray], limits: Bounds) -> list[np.ndarray]:
    """Return the Pareto-optimal plans under the bounds, each as indices of rules, int [layers, heads].

    Rules below MIN_RULE_DENSITY of a bound are left out. Influence is a first-order estimate and underestimates
    what a head loses if it keeps hardly any block. Without this limit, a budget of one half would give some heads
    all blocks and others almost none (docs/LOG.md). The objectives are the costs at the profiled lengths. The best
    plan for each length by itself gives the range of every objective. Then the cost at the
    first length is minimised, with those at the other lengths bounded at the ends of INTERVALS of their ranges.

    Args:
        costs: [layers, heads, R] at each profiled length.
        limits: from `bounds`, for the same R rules.

    Raises:
        ConfigError: no plan is within the bounds.
    """
    bounded = limits.max_density < 1
    dense_enough = limits.density >= MIN_RULE_DENSITY * limits.max_density[:, None]
    allowed = np.flatnonzero(dense_enough[bounded].all(0))
    limits = replace(limits, density=limits.density[:, allowed])
    return [allowed[plan] for plan in _pareto([np.asarray(cost)[..., allowed] for cost in costs], limits)]


def _pareto(costs: Sequence[np.ndarray], limits: Bounds) -> list[np.ndarray]:
    """Return what `choose_rules` returns when every rule is allowed."""
    costs = [cost / max(float(np.abs(cost).max()), 1e-30) for cost in costs]
    pool = candidates(costs, limits)
    # A coarse grid of rules may have no plan in a narrow band of densities; then the lower bound is given up.
    for min_density in (limits.min_density, np.zeros_like(limits.min_density)):
        best = [solve(pool, limits.max_density, min_density, target) for target in range(len(costs))]
        if all(plan is not None for plan in best):
            break
    else:
        raise ConfigError(
            f"no plan of MoA keeps at most {limits.max_density} of the blocks at the searched lengths; request a "
            "lower sparsity"
        )
    plans = [plan for plan in best if plan is not None]
    values = np.array([_values(costs, plan) for plan in plans])
    steps = [np.linspace(high, low, INTERVALS + 1) for low, high in zip(values.min(0), values.max(0))]
    # Ceilings go from the loosest to the tightest. A plan that is best under loose ceilings is best under tighter
    # ones that it meets. Where no plan was found, none exists under tighter ceilings.
    solved: list[tuple[np.ndarray, np.ndarray]] = []  # (ceilings, values of the best plan under them)
    for ceiling in map(np.array, product(*steps[1:])):
        if any((ceiling <= looser).all() and (value[1:] <= ceiling).all() for looser, value in solved):
            continue
        plan = solve(pool, limits.max_density, min_density, 0, ceiling)
        if plan is not None:
            plans.append(plan)
        solved.append((ceiling, np.full(len(costs), -np.inf) if plan is None else _values(costs, plan)))
    plans = list({plan.tobytes(): plan for plan in plans}.values())
    values = np.array([_values(costs, plan) for plan in plans])
    return [plan for plan, value in zip(plans, values) if not _dominated(value, values)]


def _values(costs: Sequence[np.ndarray], plan: np.ndarray) -> np.ndarray:
    """Return the cost of a plan at each length, [lengths]."""
    return np.array([np.take_along_axis(cost, plan[..., None], -1).sum() for cost in costs])


def _dominated(value: np.ndarray, others: np.ndarray) -> bool:
    """Return whether one of `others` [n, objectives] is nowhere above `value` and somewhere below it."""
    return bool(((others <= value).all(1) & (others < value).any(1)).any())


@dataclass(frozen=True)
class Candidates:
    """Assignments of rules to the heads of one layer, each with at most two rules, and what they cost and keep."""

    rules: np.ndarray  # int [assignments, heads]
    costs: np.ndarray  # [profiled lengths, assignments]
    density: np.ndarray  # [profiled lengths and extension, assignments], the mean over heads


def candidates(costs: Sequence[np.ndarray], limits: Bounds) -> list[Candidates]:
    """Return for each layer the assignments that are best at some price of density; `solve` chooses among them.

    A price, a mixture of the objectives and a length at which density is saved decide which pairs of rules are
    best. Within a pair, the heads that lose most by the shorter rule get the longer one: none, some, or all of
    them. So every assignment has one rule per head and at most two per layer, and the integer program makes one
    choice per layer. If these conditions were constraints of the program, HiGHS would take minutes for 64 heads.
    """
    mixtures = [*np.eye(len(costs)), np.full(len(costs), 1 / len(costs))]
    savings = [*limits.density, limits.density.mean(0)]
    longer, shorter = np.triu_indices(limits.density.shape[1])
    swap = limits.density.mean(0)[longer] < limits.density.mean(0)[shorter]
    longer, shorter = np.where(swap, shorter, longer), np.where(swap, longer, shorter)
    pool = []
    for layer in range(costs[0].shape[0]):
        layer_costs = np.stack([cost[layer] for cost in costs])  # [lengths, heads, R]
        heads = layer_costs.shape[1]
        assignments = _assignments(layer_costs, mixtures, savings, longer, shorter)
        rules = np.array(sorted(assignments))
        at_length = layer_costs[:, np.arange(heads)[:, None], rules.T].sum(1)
        pool.append(Candidates(rules, at_length, limits.density[:, rules].mean(-1)))
    return pool


def _assignments(
    layer_costs: np.ndarray,
    mixtures: Sequence[np.ndarray],
    savings: Sequence[np.ndarray],
    longer: np.ndarray,
    shorter: np.ndarray,
) -> set[tuple[int, ...]]:
    """Return the assignments of rules to the heads of one layer that are best at some price of density.

    Args:
        layer_costs: [lengths, heads, R].
        mixtures: weights of the objectives, each [lengths].
        savings: densities that have a price, each [R].
        longer, shorter: the pairs of rules, each int [pairs].
    """
    heads = layer_costs.shape[1]
    splits = np.unique(np.linspace(0, heads, min(heads, MAX_SPLITS) + 1).round().astype(int))
    scale = layer_costs.max() or 1.0
    # One rule for all heads is always a candidate: where nothing is lost, a plan still has a density to keep.
    assignments = {(rule,) * heads for rule in range(layer_costs.shape[2])}
    for mixture in mixtures:
        mixed = np.tensordot(mixture, layer_costs, 1)
        pairs: set[int] = set()
        for saving, price in product(savings, DENSITY_PRICES):
            priced = mixed + price * scale * saving
            totals = np.minimum(priced[:, longer], priced[:, shorter]).sum(0)
            pairs |= set(totals.argsort(kind="stable")[:PAIRS_PER_PRICE])
        for pair in pairs:
            loss = mixed[:, shorter[pair]] - mixed[:, longer[pair]]
            rank = np.argsort(np.argsort(-loss, kind="stable"), kind="stable")
            assignments |= {tuple(np.where(rank < t, longer[pair], shorter[pair]).tolist()) for t in splits}
    return assignments


def solve(
    pool: Sequence[Candidates],
    max_density: np.ndarray,
    min_density: np.ndarray,
    target: int,
    ceilings: Sequence[float] | np.ndarray = (),
) -> np.ndarray | None:
    """Return the plan with the lowest cost at one length, int [layers, heads], or None if no plan is within bounds.

    The program is first solved without `min_density`, so assignments that another one of their layer dominates can
    be left out. A solution that satisfies `min_density` nevertheless is also the best one with it.

    Args:
        pool: from `candidates`.
        max_density, min_density: bounds at each length, as in Bounds.
        target: index of the length whose cost is minimised.
        ceilings: of the costs at the second, third, ... profiled length.
    """
    layers = [_not_dominated(layer, max_density, target, bool(len(ceilings))) for layer in pool]
    chosen = _choose(layers, max_density, np.zeros_like(min_density), target, ceilings)
    if chosen is None:
        return None
    density = np.mean([layer.density[:, place] for layer, place in zip(layers, chosen)], 0)
    if (density < min_density - TOLERANCE).any():
        layers = list(pool)
        chosen = _choose(layers, max_density, min_density, target, ceilings)
    return None if chosen is None else np.stack([layer.rules[place] for layer, place in zip(layers, chosen)])


def _not_dominated(layer: Candidates, max_density: np.ndarray, target: int, ceilings: bool) -> Candidates:
    """Return the distinct assignments of a layer that no other one dominates in costs and bounded densities."""
    costs = [layer.costs[[target]], *([layer.costs[1:]] if ceilings else [])]
    objectives = np.concatenate([*costs, layer.density[max_density < 1]]).T
    objectives, first = np.unique(objectives, axis=0, return_index=True)
    keep = first[[not _dominated(value, objectives) for value in objectives]]
    return Candidates(layer.rules[keep], layer.costs[:, keep], layer.density[:, keep])


def _choose(
    pool: Sequence[Candidates],
    max_density: np.ndarray,
    min_density: np.ndarray,
    target: int,
    ceilings: Sequence[float] | np.ndarray,
) -> list[int] | None:
    """Return the index of the assignment that HiGHS chooses per layer, or None if no choice is within bounds."""
    from scipy.optimize import Bounds as VariableBounds
    from scipy.optimize import LinearConstraint, milp
    from scipy.sparse import block_diag

    costs = np.concatenate([layer.costs for layer in pool], 1)
    density = np.concatenate([layer.density for layer in pool], 1) / len(pool)
    constraints = [
        LinearConstraint(block_diag([np.ones((1, len(layer.rules))) for layer in pool]).tocsr(), 1, 1),
        LinearConstraint(density, min_density - TOLERANCE, max_density + TOLERANCE),
    ]
    if len(ceilings):
        limit = np.asarray(ceilings) * (1 + 1e-6) + TOLERANCE
        constraints.append(LinearConstraint(costs[1:], -np.inf, limit))
    solution = milp(
        costs[target],
        constraints=constraints,
        integrality=np.ones(costs.shape[1]),
        bounds=VariableBounds(0, 1),
        options={"mip_rel_gap": MIP_GAP, "node_limit": MAX_NODES},
    )
    if solution.x is None:  # The program is infeasible, or no solution was found within MAX_NODES.
        return None
    ends = np.cumsum([len(layer.rules) for layer in pool])
    return [int(part.argmax()) for part in np.split(solution.x, ends[:-1])]
