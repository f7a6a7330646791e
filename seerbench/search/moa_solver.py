"""How MoA's plans are found: influence of every block, the rules, and the choice among them. No model here.

    1 layer_influence   what masking each block would change of the loss, to first order
    2 rule_costs        what each rule (alpha, beta) would hide of it, a head
    3 choose_rules      one rule a head, at most two a layer, one objective a length: by epsilon-constraint, HiGHS
                        choosing for each layer among `candidates`

calibrate.py runs the model before 1 and validates the plans that 3 leaves. Source: arXiv:2406.14909, section 4 and
appendix; the description followed is in the card of moa.py.
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

KV_DENSITY = 0.5  # upstream's default bound
FINEST = 0.25  # of a bound: what a rule keeps at least (upstream: an eighth of the context for a bound of a half)
SLACK = 0.9  # a plan uses at least this share of its bound
NEAR = 1.5
RULES_A_LAYER = 2
INTERVALS = 4  # of each objective's range in the epsilon-constraint
BETAS = (0.0, 1 / 32, 1 / 16, *(step / 8 for step in range(1, 9)))  # upstream: the eighths
NOTHING_LEFT = 1e-6  # a row's weight beyond one key, below which there is nothing to renormalise onto
PRICES = np.geomspace(1e-3, 10.0, 8)  # of all the density, in units of the layer's largest cost
PAIRS = 2  # of rules that are kept for each price
SPLITS = 8  # numbers of heads with the longer rule, beside none
GAP = 0.01  # HiGHS may stop this near to the optimum, or after NODES
NODES = 1000
FEASIBLE = 1e-9  # rounding of densities and costs


def layer_influence(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, block: int) -> Tensor:
    """|change of the loss| if a pair is masked and its row renormalised, summed over blocks: fp32 [Hq, n, n].

    q and grad (dLoss / dOutput) [B, Hq, N, D], k and v [B, Hk, N, D]. With A = softmax and G = dLoss / dA:
    dLoss_ij = A_ij / (1 - A_ij) * (sum_n G_in A_in - G_ij); A_ij G_ij where the key is all of its row (row 0).
    """
    tokens, group = q.shape[2], q.shape[1] // k.shape[1]
    future = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).triu(1)
    found = []
    for head in range(q.shape[1]):
        key, value = (x[:, head // group].float() for x in (k, v))
        scores = (q[:, head].float() @ key.mT) * q.shape[-1] ** -0.5
        weights = scores.masked_fill_(future, -torch.inf).softmax(-1)
        slope = grad[:, head].float() @ value.mT
        left = 1 - weights
        mean = (weights * slope).sum(-1, keepdim=True)
        moved = weights / left.clamp_min(NOTHING_LEFT) * (mean - slope)
        effect = torch.where(left > NOTHING_LEFT, moved, weights * slope).abs_().sum(0)
        found.append(_sum_blocks(effect, block))
    return torch.stack(found)


def _sum_blocks(x: Tensor, block: int) -> Tensor:
    n, pad = block_count(x.shape[-1], block), -x.shape[-1] % block
    return F.pad(x, (0, pad, 0, pad)).view(n, block, n, block).sum((1, 3))


def rule_grid(lengths: Sequence[int], extension: int, block: int) -> np.ndarray:
    """The rules [R, 2] of the search: alpha from -shortest to longest in steps of half the shortest, times BETAS.

    A span must be positive at the shortest length and fit the longest and the extension. The shortest rule that
    the mask knows, two blocks whatever the context, is always there.
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
    """Influence [Hq, n, n] that each rule hides, [Hq, R]: all but the first block and a band of blocks."""
    n = influence.shape[-1]
    rest = influence.clone()
    rest[..., 0] = 0
    at_distance = torch.stack([rest.diagonal(-d, -2, -1).sum(-1) for d in range(n)], -1).double().cpu().numpy()
    beyond = np.concatenate([at_distance[:, ::-1].cumsum(-1)[:, ::-1], np.zeros((len(at_distance), 1))], -1)
    band = np.floor(rules[:, 0] // block + rules[:, 1] * n).astype(int)
    return beyond[:, np.clip(band, 1, n)]


@dataclass(frozen=True)
class Bounds:
    """What a plan may keep at each length (the extension last): the density of each rule and the mean's limits."""

    density: np.ndarray  # [lengths, R]
    most: np.ndarray  # [lengths]
    least: np.ndarray  # [lengths]


def bounds(rules: np.ndarray, lengths: Sequence[int], block: int, sparsity: float | None = None) -> Bounds:
    """Upstream's: mean span over context within 0.9 to 1 of 0.5. With a sparsity: the blocks that the mask keeps
    within 0.9 to 1 of those that the top-k rule keeps; a length at which the shortest rule alone comes near to
    that has no bound, since it would forbid every rule that grows, unless it is the last one."""
    if sparsity is None:
        span = rules[:, 0] + rules[:, 1] * np.asarray(lengths)[:, None]
        density = np.minimum(span / np.asarray(lengths)[:, None], 1.0)
        most = np.full(len(lengths), KV_DENSITY)
    else:
        counts = [block_count(length, block) for length in lengths]
        windows = [window_blocks(*rules.T, length, block, reserve_for(sparsity)) for length in lengths]
        density = np.stack([block_density(w, n) for w, n in zip(windows, counts)])
        most = np.array([top_k_density(n, sparsity) for n in counts])
    floor = density.min(1)
    bound = most >= NEAR * floor
    bound[-1] = True
    most = np.where(bound, np.maximum(most, floor), 1.0)
    least = np.where(bound, SLACK * most, 0.0)
    return Bounds(density, most, np.ones_like(most) if sparsity == 0 else least)


def choose_rules(costs: Sequence[np.ndarray], limits: Bounds) -> list[np.ndarray]:
    """Pareto-optimal plans, each int [layers, heads] of rules, for costs [layers, heads, R] at each length.

    Rules that keep less than FINEST of a bound are left out: influence, which is first-order, underrates what a
    head loses that keeps hardly a block, and a budget of a half would give some heads everything and others nothing
    (docs/LOG.md). Each length alone gives the range of every objective; then the first is minimised with the others
    bounded at the ends of INTERVALS of their ranges. RuntimeError when the bounds admit no plan at all.
    """
    fine = np.flatnonzero((limits.density >= FINEST * limits.most[:, None])[limits.most < 1].all(0))
    few = replace(limits, density=limits.density[:, fine])
    return [fine[plan] for plan in _pareto([np.asarray(cost)[..., fine] for cost in costs], few)]


def _pareto(costs: Sequence[np.ndarray], limits: Bounds) -> list[np.ndarray]:
    """`choose_rules` among all rules that there are."""
    costs = [cost / max(float(np.abs(cost).max()), 1e-30) for cost in costs]
    pool = candidates(costs, limits)
    for least in (
        limits.least,
        np.zeros_like(limits.least),
    ):  # a coarse grid may miss a narrow band: drop its floor
        alone = [solve(pool, limits.most, least, target) for target in range(len(costs))]
        if all(plan is not None for plan in alone):
            break
    else:
        raise RuntimeError(f"no plan of MoA keeps at most {limits.most} of the blocks; ask for less sparsity")
    values = np.array([_values(costs, plan) for plan in alone])
    steps = [np.linspace(high, low, INTERVALS + 1) for low, high in zip(values.min(0), values.max(0))]
    # From the loosest ceilings to the tightest: the best plan under looser ones stays the best while it fits, and
    # where none was found, none is sought under tighter ones.
    solved: list[tuple[np.ndarray, np.ndarray]] = []  # (ceilings, values of the best plan under them)
    found = [*alone]
    for ceiling in map(np.array, product(*steps[1:])):
        if any((ceiling <= looser).all() and (value[1:] <= ceiling).all() for looser, value in solved):
            continue
        plan = solve(pool, limits.most, least, 0, ceiling)
        if plan is not None:
            found.append(plan)
        solved.append((ceiling, np.full(len(costs), -np.inf) if plan is None else _values(costs, plan)))
    found = list({plan.tobytes(): plan for plan in found}.values())
    values = np.array([_values(costs, plan) for plan in found])
    return [plan for plan, value in zip(found, values) if not _beaten(value, values)]


def _values(costs: Sequence[np.ndarray], plan: np.ndarray) -> np.ndarray:
    return np.array([np.take_along_axis(cost, plan[..., None], -1).sum() for cost in costs])


def _beaten(value: np.ndarray, others: np.ndarray) -> bool:
    return bool(((others <= value).all(1) & (others < value).any(1)).any())


@dataclass(frozen=True)
class Candidates:
    """Ways to rule one layer, each with at most two rules, and what they cost and keep."""

    rules: np.ndarray  # int [ways, heads]
    costs: np.ndarray  # [lengths profiled, ways]
    density: np.ndarray  # [lengths bounded, ways], mean over heads


def candidates(costs: Sequence[np.ndarray], limits: Bounds) -> list[Candidates]:
    """For each layer, the assignments that are best for some price of density: what `solve` chooses from.

    A price, a mixture of the objectives and a length to save at decide which PAIRS pairs of rules are best. In each
    of these pairs the heads that lose most by the shorter rule get the longer one: none, some, or all of them.
    Two rules a layer and one a head hold by construction, so that the integer program is left with one choice a
    layer: coupling them there takes HiGHS minutes for 64 heads.
    """
    mixtures = [*np.eye(len(costs)), np.full(len(costs), 1 / len(costs))]
    savings = [*limits.density, limits.density.mean(0)]
    longer, shorter = np.triu_indices(limits.density.shape[1])
    swap = limits.density.mean(0)[longer] < limits.density.mean(0)[shorter]
    longer, shorter = np.where(swap, shorter, longer), np.where(swap, longer, shorter)
    pool = []
    for layer in range(costs[0].shape[0]):
        of_layer = np.stack([cost[layer] for cost in costs])  # [lengths, heads, R]
        heads = of_layer.shape[1]
        splits = np.unique(np.linspace(0, heads, min(heads, SPLITS) + 1).round().astype(int))
        scale = of_layer.max() or 1.0
        # One rule for all heads, too: where nothing is lost a plan still has a density to keep.
        ways = {(rule,) * heads for rule in range(limits.density.shape[1])}
        for mixture in mixtures:
            mixed = np.tensordot(mixture, of_layer, 1)
            pairs = set()
            for saving, price in product(savings, PRICES):
                priced = mixed + price * scale * saving
                pairs |= set(
                    np.minimum(priced[:, longer], priced[:, shorter]).sum(0).argsort(kind="stable")[:PAIRS]
                )
            for pair in pairs:
                loss = mixed[:, shorter[pair]] - mixed[:, longer[pair]]
                place = np.argsort(np.argsort(-loss, kind="stable"), kind="stable")
                ways |= {tuple(np.where(place < t, longer[pair], shorter[pair]).tolist()) for t in splits}
        rules = np.array(sorted(ways))
        at_length = of_layer[:, np.arange(heads)[:, None], rules.T].sum(1)
        pool.append(Candidates(rules, at_length, limits.density[:, rules].mean(-1)))
    return pool


def solve(
    pool: Sequence[Candidates], most: np.ndarray, least: np.ndarray, target: int, ceilings: Sequence[float] = ()
) -> np.ndarray | None:
    """The plan, int [layers, heads], of least cost at the target length within the bounds; None if there is none.

    ceilings: of the costs at the second, third, ... length. First without the least densities: then a way that
    another of its layer beats in all that counts is not needed, and what is best is so with them, if it has them.
    """
    few = [_unbeaten(layer, most, target, bool(len(ceilings))) for layer in pool]
    ways = _choose(few, most, np.zeros_like(least), target, ceilings)
    if ways is None:
        return None
    kept = np.mean([layer.density[:, way] for layer, way in zip(few, ways)], 0)
    if (kept < least - FEASIBLE).any():
        few, ways = pool, _choose(pool, most, least, target, ceilings)
    return None if ways is None else np.stack([layer.rules[way] for layer, way in zip(few, ways)])


def _unbeaten(layer: Candidates, most: np.ndarray, target: int, ceilings: bool) -> Candidates:
    """The ways of a layer that no other beats in the costs and the bounded densities; one of equal ones."""
    costs = [layer.costs[[target]], *([layer.costs[1:]] if ceilings else [])]
    counts = np.concatenate([*costs, layer.density[most < 1]]).T
    counts, first = np.unique(counts, axis=0, return_index=True)
    keep = first[[not _beaten(way, counts) for way in counts]]
    return Candidates(layer.rules[keep], layer.costs[:, keep], layer.density[:, keep])


def _choose(
    pool: Sequence[Candidates], most: np.ndarray, least: np.ndarray, target: int, ceilings: Sequence[float]
) -> list[int] | None:
    """One way a layer by HiGHS: binary Z[layer, way]; None if no choice is within the bounds."""
    from scipy.optimize import Bounds as Between
    from scipy.optimize import LinearConstraint, milp
    from scipy.sparse import block_diag

    costs = np.concatenate([layer.costs for layer in pool], 1)
    density = np.concatenate([layer.density for layer in pool], 1) / len(pool)
    constraints = [
        LinearConstraint(block_diag([np.ones((1, len(layer.rules))) for layer in pool]).tocsr(), 1, 1),
        LinearConstraint(density, least - FEASIBLE, most + FEASIBLE),
    ]
    if len(ceilings):
        limit = np.asarray(ceilings) * (1 + 1e-6) + FEASIBLE
        constraints.append(LinearConstraint(costs[1:], -np.inf, limit))
    answer = milp(
        costs[target],
        constraints=constraints,
        integrality=np.ones(costs.shape[1]),
        bounds=Between(0, 1),
        options={"mip_rel_gap": GAP, "node_limit": NODES},
    )
    if answer.x is None:  # infeasible, or nothing found in NODES
        return None
    ends = np.cumsum([len(layer.rules) for layer in pool])
    parts = np.split(answer.x, ends[:-1])
    return [int(part.argmax()) for part in parts]
