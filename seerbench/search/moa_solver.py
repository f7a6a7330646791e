"""Choose MoA's rules for every head by integer programs, from what masking each block would cost.

    layer_influence   attention of one layer and its gradient -> change of the loss per masked block, to first order
    rule_grid         lengths and a requested sparsity -> the rules (alpha, beta) that heads may have
    rule_costs        influence -> what each rule would hide of it, per head
    bounds            a requested sparsity -> what a plan may keep at each length
    choose_rules      costs and bounds -> the Pareto-optimal plans: one rule per head, at most two per layer
    uniform_plans     bounds -> the rules that all heads may have together

A program chooses one column per layer: an assignment of rules to the heads of the layer. There are too many columns
to write down, so they are generated. The linear relaxation is solved over some columns, its dual prices say what
any other column would save, and the best ones are added, until none saves anything. The integer program then
chooses among the columns that are cheapest at these prices.

No model runs here: search/moa.py computes the gradients first and compares the resulting plans on text afterwards.
Source: arXiv:2406.14909, section 4 and appendix. The card in baselines/moa.py lists what is ported and what
differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import Bounds as VariableBounds
from scipy.optimize import LinearConstraint, linprog, milp
from torch import Tensor

from seerbench.baselines.moa import MIN_SPAN_BLOCKS, block_density, span_of, window_blocks
from seerbench.core.block_mask import block_count
from seerbench.core.top_k import blocks_per_row, top_k_density
from seerbench.errors import ConfigError, Refused
from seerbench.rows.schema import TOLERANCE as BUDGET_TOLERANCE

DEFAULT_KV_DENSITY = 0.5  # Upstream bounds the mean over heads of the keys in the last row's mask by this.
MIN_BUDGET_SHARE = 0.9  # A plan uses at least this share of its bound, as upstream's does.
# With a requested sparsity, a length has a bound only if it is at least this many times the density of the shortest
# rule. A bound that is closer would forbid every rule that grows with the context.
MIN_BOUND_RATIO = 1.5
# A plan with one rule for all heads may keep this much more than the budget. The spans of StreamingLLM's windows
# over the context are not on one line. A line through two of them exceeded the budget elsewhere by up to 0.0015.
UNIFORM_EXCESS = 0.002
# Values of beta in the grid of rules. Upstream's are the eighths; sparsities near 90% need the finer ones.
UPSTREAM_BETAS = tuple(step / 8 for step in range(9))
FINE_BETAS = (0.0, 1 / 32, 1 / 16, *UPSTREAM_BETAS[1:])
# A key that leaves less than this weight to the other keys of its row is taken for the row's only key.
MIN_REMAINING_WEIGHT = 1e-6
INTERVALS = 4  # The epsilon-constraint method divides the range of each objective into this many intervals.
NEW_COLUMNS = 40  # Columns that are added per layer and round of the linear program.
MAX_ROUNDS = 100  # The linear program stops after this many rounds, though it has needed far fewer.
# Columns per layer that the integer program chooses from. MANY, and those that the relaxation generated, are for a
# program without ceilings whose best plan is not shown to be made of the FEW.
FEW_COLUMNS, MANY_COLUMNS = 25, 600
# HiGHS may stop at this relative distance from the optimum, and stops after this many nodes. The second numbers are
# for programs with ceilings. These are arbitrary points of a range, so a plan near the best below them will do.
MIP_GAPS, MAX_NODES = (1e-4, 1e-2), (1000, 20)
FEASIBLE = 1e-7  # HiGHS meets its constraints, and prices columns, to this accuracy.
PENALTY = 1e4  # Price of violating a bound in the linear program, in units of the largest cost of one head.
ROUNDING = 1e-9  # Rounding of densities and costs does not violate a constraint.


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


def rule_grid(
    lengths: Sequence[int],
    extension: int,
    block: int,
    sparsity: float | None = None,
    last_rows_dense: int = 0,
    validation: int | None = None,
) -> np.ndarray:
    """Return the rules (alpha, beta) of the search, float64 [R, 2]; a rule spans alpha + beta * N tokens.

    Without a sparsity they are upstream's: alpha runs from minus the shortest length to the longest in steps of
    half the shortest, and beta through the eighths from 0 to 1. A span must be positive at the shortest length, and
    at most the context at the longest length and the extension. With a sparsity, there are also finer values of
    beta, the shortest rule that a mask can express, two blocks at every context, and the `budget_rules`.

    Args:
        lengths: the profiled lengths, in tokens.
        extension: the longer length, in tokens, at which plans are bounded and not profiled.
        block: tokens per block.
        sparsity: requested share of skipped causal blocks, or None.
        last_rows_dense: number of block rows at the end that keep every block.
        validation: the length of the text on which plans are compared, in tokens.
    """
    shortest, longest = min(lengths), max(lengths)
    alphas = np.arange(-shortest, longest + 1, shortest // 2)
    betas = UPSTREAM_BETAS if sparsity is None else FINE_BETAS
    fits = [
        (float(alpha), beta)
        for alpha, beta in product(alphas, betas)
        if alpha + beta * shortest > 0 and all(alpha + beta * n <= n for n in (longest, extension))
    ]
    if sparsity is None:
        return np.array(fits)
    every = sorted({*lengths, extension, *([validation] if validation else [])})
    return np.array([(2.0 * block, 0.0), *fits, *budget_rules(every, block, sparsity, last_rows_dense)])


def budget_rules(
    lengths: Sequence[int], block: int, sparsity: float, last_rows_dense: int = 0
) -> list[tuple[float, float]]:
    """Return rules whose windows have the size of StreamingLLM's window of the same budget at one length or two.

    For the span x of that window at each length of n blocks, they are a constant window (x * block, 0), one in
    proportion to the context (0, x / n), and the line through the spans at every two lengths. So StreamingLLM's
    window of each length is the window of some rules there, block for block. Lengths are left out at which the
    budget is too small for the first block and the diagonal.
    """
    spans: dict[float, float] = {}  # by the length in blocks
    for length in lengths:
        n = block_count(length, block)
        try:
            kept = top_k_density(n, sparsity, last_rows_dense) * n * (n + 1) / 2
        except Refused:
            continue
        rows = n - last_rows_dense
        span = span_of(kept - sum(range(n, rows, -1)), rows)
        if span >= MIN_SPAN_BLOCKS:
            spans[length / block] = span
    rules = {(span * block, 0.0) for span in spans.values()} | {(0.0, span / n) for n, span in spans.items()}
    for (short, span), (long, longer_span) in combinations(spans.items(), 2):
        beta = (longer_span - span) / (long - short)
        rules.add(((span - beta * short) * block, beta))
    return sorted(rules)


def rule_costs(
    influence: Tensor, rules: np.ndarray, block: int, sparsity: float | None = None, last_rows_dense: int = 0
) -> np.ndarray:
    """Return the influence outside the mask that runs under each rule, float64 [Hq, R].

    Args:
        influence: [Hq, n, n] of one layer, from `layer_influence`.
        rules: [R, 2], from `rule_grid`.
        block: tokens per block.
        sparsity: requested share of skipped causal blocks, or None.
        last_rows_dense: number of block rows at the end that keep every block.
    """
    n = influence.shape[-1]
    rest = influence.double().cpu().numpy().copy()
    rest[..., 0] = 0  # The first block is always kept.
    up_to = rest.cumsum(-1)  # [Hq, row, column]
    windows = window_blocks(rules[:, 0], rules[:, 1], n * block, block, sparsity, last_rows_dense)
    row = np.arange(n)
    last_hidden = np.maximum(row - windows, 0)  # [R, row]; column 0 hides nothing
    return up_to[:, row, last_hidden].sum(-1)


@dataclass(frozen=True)
class Bounds:
    """What a plan may keep at each length. The profiled lengths come first and the extension last."""

    density: np.ndarray  # [lengths, R], of each rule
    max_density: np.ndarray  # [lengths], of a plan: the mean over layers and heads; 1 where there is no bound
    min_density: np.ndarray  # [lengths], of a plan from the programs
    min_uniform: np.ndarray  # [lengths], of a plan with one rule for all heads
    max_uniform: np.ndarray  # [lengths]


def bounds(
    rules: np.ndarray,
    lengths: Sequence[int],
    block: int,
    sparsity: float | None = None,
    last_rows_dense: int = 0,
) -> Bounds:
    """Return the bounds of a plan.

    Without a sparsity, the density is upstream's KV density, the share of the keys that the last row of a mask
    keeps, the first block included and without room for generated tokens. Plans keep MIN_BUDGET_SHARE to 1 of
    DEFAULT_KV_DENSITY. With a sparsity, it is the share of causal blocks that the mask keeps. Plans keep at most
    1 - sparsity, at least MIN_BUDGET_SHARE of it, and miss it by at most the TOLERANCE of rows/schema.py. Those
    with one rule for all heads may be this far below it, and UNIFORM_EXCESS above. The last length always has a
    bound, which is at least the density of the shortest rule. Any other length has one only if MIN_BOUND_RATIO
    allows it.

    Args:
        rules: [R, 2], from `rule_grid`.
        lengths: the profiled lengths and the extension, in tokens.
        block: tokens per block.
        sparsity: requested share of skipped causal blocks, or None.
        last_rows_dense: number of block rows at the end that keep every block.
    """
    if sparsity is None:
        density = np.stack([kv_density(rules, block_count(length, block), block) for length in lengths])
        most = np.maximum(DEFAULT_KV_DENSITY, density.min(1))  # few blocks: no rule may be as short
        least = MIN_BUDGET_SHARE * most
        return Bounds(density, most, least, least, most)
    windows = [
        window_blocks(rules[:, 0], rules[:, 1], length, block, sparsity, last_rows_dense) for length in lengths
    ]
    density = np.stack([block_density(window) for window in windows])
    budget, floor = 1 - sparsity, density.min(1)
    is_bounded = budget >= MIN_BOUND_RATIO * floor
    is_bounded[-1] = True
    most = np.where(is_bounded, np.maximum(budget, floor), 1.0)
    nearest = np.where(is_bounded, most - BUDGET_TOLERANCE, 0.0)
    least = np.where(is_bounded, np.maximum(nearest, MIN_BUDGET_SHARE * most), 0.0)
    least = np.ones_like(least) if sparsity == 0 else least
    return Bounds(density, most, least, nearest, np.where(is_bounded, most + UNIFORM_EXCESS, 1.0))


def kv_density(rules: np.ndarray, n: int, block: int) -> np.ndarray:
    """Return the share of n blocks of keys that the last row of upstream's search mask keeps, [R].

    That mask has the first block and a band of alpha // block + beta * n blocks, rounded down and at least one.
    """
    band = np.trunc(rules[:, 0] // block + rules[:, 1] * n)
    return np.minimum(np.maximum(band, 1) + 1, n) / n


def is_streaming(
    rule: np.ndarray, tokens: int, block: int, sparsity: float | None, last_rows_dense: int = 0
) -> bool:
    """Return whether a rule (alpha, beta) keeps what StreamingLLM keeps at a context of N tokens.

    Without a sparsity, and where StreamingLLM is refused, no rule does.
    """
    if sparsity is None:
        return False
    n = block_count(tokens, block)
    try:
        kept = blocks_per_row(n, sparsity, last_rows_dense).numpy()
    except Refused:
        return False
    window = window_blocks(rule[:1], rule[1:], tokens, block, sparsity, last_rows_dense)[0]
    visible = np.arange(n) + 1
    return np.array_equal(np.minimum(window + 1, visible), np.minimum(kept, visible))


def uniform_plans(limits: Bounds) -> list[int]:
    """Return the rules that keep the bounds if every head has the same one."""
    within = (limits.density <= limits.max_uniform[:, None] + ROUNDING) & (
        limits.density >= limits.min_uniform[:, None] - ROUNDING
    )
    return np.flatnonzero(within.all(0)).tolist()


def choose_rules(costs: Sequence[np.ndarray], limits: Bounds) -> list[np.ndarray]:
    """Return the Pareto-optimal plans under the bounds, each as indices of rules, int [layers, heads].

    The objectives are the costs at the profiled lengths. The best plan for each length by itself gives the range of
    every objective. Then the cost at each length in turn is minimised, with those at the other lengths bounded at
    the ends of INTERVALS of their ranges.

    Args:
        costs: [layers, heads, R] at each profiled length.
        limits: from `bounds`, for the same R rules.

    Raises:
        ConfigError: no plan is within the bounds.
    """
    targets, free = range(len(costs)), np.full(len(costs), np.inf)
    # With few blocks no plan may be in a narrow band of densities; then the lower bound is given up. A plan that
    # misses its request is refused where it runs.
    for kept in (limits, replace(limits, min_density=np.zeros_like(limits.min_density))):
        program = Program(costs, kept)
        best = [program.solve(target, free) for target in targets]
        plans = [plan for plan in best if plan is not None]
        if len(plans) == len(best):
            break
    else:
        raise ConfigError(
            f"no plan of MoA keeps at most {limits.max_density} of the blocks at the searched lengths; request a "
            "lower sparsity"
        )
    values = np.array([program.values(plan) for plan in plans])
    steps = [np.linspace(high, low, INTERVALS + 1) for low, high in zip(values.min(0), values.max(0))]
    for target in targets:
        plans += _under_ceilings(program, target, steps)
    plans = list({plan.tobytes(): plan for plan in plans}.values())
    values = np.array([program.values(plan) for plan in plans])
    return [plan for plan, value in zip(plans, values) if not _dominated(value, values)]


def _under_ceilings(program: Program, target: int, steps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the plans that are best at one length under ceilings of the cost at every other length.

    Ceilings go from the loosest to the tightest. A plan that is best under loose ceilings is best under tighter
    ones that it meets. Where no plan was found, tighter ceilings are not tried.
    """
    plans = []
    solved: list[tuple[np.ndarray, np.ndarray]] = []  # (ceilings, values of the best plan under them)
    points = [[np.inf] if length == target else step for length, step in enumerate(steps)]
    for ceiling in map(np.array, product(*points)):
        if any((ceiling <= looser).all() and (value <= ceiling).all() for looser, value in solved):
            continue
        plan = program.solve(target, ceiling)
        if plan is not None:
            plans.append(plan)
        solved.append((ceiling, np.full(len(steps), -np.inf) if plan is None else program.values(plan)))
    return plans


def _dominated(value: np.ndarray, others: np.ndarray) -> bool:
    """Return whether one of `others` [n, objectives] is nowhere above `value` and somewhere below it."""
    return bool(((others <= value).all(1) & (others < value).any(1)).any())


@dataclass(frozen=True)
class Prices:
    """The dual prices of a linear relaxation, and its optimum, which no plan is below."""

    weights: np.ndarray  # [rows], of what a column adds to each row of the program
    of_layer: np.ndarray  # [layers], what a column of each layer must cost less than to lower the optimum
    bound: float


class Program:
    """The integer programs of one budget: the same costs and bounds, another objective and other ceilings each.

    Columns that one program generates serve the next.
    """

    def __init__(self, costs: Sequence[np.ndarray], limits: Bounds) -> None:
        """Make the programs. The arguments are those of `choose_rules`."""
        scaled = np.stack([cost / max(float(np.abs(cost).max()), 1e-30) for cost in costs])
        self.objectives, self.layers, self.heads, rules = scaled.shape
        bounded = (limits.max_density < 1) | (limits.min_density > 0)
        density = limits.density[bounded][:, None, None] / (self.layers * self.heads)
        # What a head with a rule adds to each row of the program: costs first, then densities.
        shape = len(density), self.layers, self.heads, rules
        self.adds = np.concatenate([scaled, np.broadcast_to(density, shape)])  # [rows, layers, heads, R]
        self.most, self.least = limits.max_density[bounded], limits.min_density[bounded]
        self.pairs = np.triu_indices(rules)
        # One rule for all heads of a layer is always a column: where nothing is lost, a plan still has a density.
        same = np.repeat(np.arange(rules)[:, None], self.heads, 1)
        self.columns = [same for _ in range(self.layers)]  # int [columns, heads] of each layer

    def values(self, plan: np.ndarray) -> np.ndarray:
        """Return the scaled cost of a plan at each profiled length, [lengths]. plan: int [layers, heads]."""
        rows = [self._rows(layer, plan[layer][None])[: self.objectives, 0] for layer in range(self.layers)]
        return np.sum(rows, 0)

    def solve(self, target: int, ceilings: np.ndarray) -> np.ndarray | None:
        """Return the plan with the lowest cost at one length, int [layers, heads], or None if none was found.

        Args:
            target: index of the length whose cost is minimised.
            ceilings: of the scaled cost at each profiled length; inf where there is none.
        """
        upper = np.concatenate([ceilings * (1 + 1e-6), self.most]) + ROUNDING
        lower = np.concatenate([np.full(self.objectives, -np.inf), self.least - ROUNDING])
        prices = self._generate(target, upper, lower)
        if prices is None:
            return None
        best, left_out = self._choose_of_cheapest(FEW_COLUMNS, prices, target, upper, lower)
        # At these prices, every column of a better plan costs at most what the plan loses against the relaxation.
        # If the columns that are left out cost more, the plan is the best one.
        is_best = best is not None and self.values(best)[target] - prices.bound < left_out
        if is_best or np.isfinite(ceilings).any():
            return best
        return self._choose_of_cheapest(MANY_COLUMNS, prices, target, upper, lower)[0]

    def _choose_of_cheapest(
        self, count: int, prices: Prices, target: int, upper: np.ndarray, lower: np.ndarray
    ) -> tuple[np.ndarray | None, float]:
        """Choose among the cheapest columns of each layer and, if they are many, those that were generated.

        Returns:
            the plan or None, and a bound on the reduced costs of all other columns.
        """
        cheapest = [self._cheapest(layer, prices, count) for layer in range(self.layers)]
        columns = [columns for columns, _ in cheapest]
        if count == MANY_COLUMNS:
            columns = [np.unique(np.concatenate(each), axis=0) for each in zip(columns, self.columns, strict=True)]
        return self._choose(columns, target, upper, lower), min(left_out for _, left_out in cheapest)

    def _generate(self, target: int, upper: np.ndarray, lower: np.ndarray) -> Prices | None:
        """Solve the linear relaxation over all columns; None if it has no solution within the bounds.

        Every bound may be violated at the price PENALTY, so that there is a solution to begin with.
        """
        has_upper, has_lower = np.isfinite(upper), np.isfinite(lower)
        limit = np.concatenate([upper[has_upper], -lower[has_lower]])
        slack = -np.eye(len(limit))
        for _ in range(MAX_ROUNDS):
            adds = np.concatenate([self._rows(*each) for each in enumerate(self.columns)], 1)
            sizes = [len(columns) for columns in self.columns]
            one_each = np.repeat(np.eye(self.layers), sizes, axis=1)
            solution = linprog(
                np.concatenate([adds[target], np.full(len(limit), PENALTY)]),
                np.concatenate([np.concatenate([adds[has_upper], -adds[has_lower]]), slack], 1),
                limit,
                np.concatenate([one_each, np.zeros((self.layers, len(limit)))], 1),
                np.ones(self.layers),
                method="highs",
            )
            of_upper, of_lower = np.split(solution.ineqlin.marginals, [has_upper.sum()])
            weights = np.zeros(len(upper))
            weights[target] = 1
            weights[has_upper] -= of_upper
            weights[has_lower] += of_lower
            prices = Prices(weights, solution.eqlin.marginals, solution.fun)
            if not self._add_columns(prices):
                break
        return prices if solution.x[adds.shape[1] :].sum() < FEASIBLE else None

    def _add_columns(self, prices: Prices) -> bool:
        """Add the best NEW_COLUMNS of each layer that would lower the cost, and return whether there were any."""
        found = False
        for layer in range(self.layers):
            totals, columns = self._best_per_pair(layer, prices, NEW_COLUMNS)
            columns = columns[totals < -FEASIBLE]
            if len(columns):
                self.columns[layer] = np.unique(np.concatenate([self.columns[layer], columns]), axis=0)
                found = True
        return found

    def _priced(self, layer: int, prices: Prices) -> np.ndarray:
        """Return what each rule of each head of a layer costs at these prices, [heads, R]."""
        return np.tensordot(prices.weights, self.adds[:, layer], 1)

    def _best_per_pair(self, layer: int, prices: Prices, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best columns of the best pairs of rules: their reduced costs [K], and columns [K, heads]."""
        priced, (first, second) = self._priced(layer, prices), self.pairs
        totals = np.minimum(priced[:, first], priced[:, second]).sum(0)
        best = np.argsort(totals, kind="stable")[:count]
        first, second = first[best, None], second[best, None]
        head = np.arange(self.heads)
        columns = np.where(priced[head, first] <= priced[head, second], first, second)
        return totals[best] - prices.of_layer[layer], columns

    def _cheapest(self, layer: int, prices: Prices, wanted: int) -> tuple[np.ndarray, float]:
        """Return the columns of a layer with the lowest reduced costs, and a bound on those of all others.

        The best column of a pair of rules becomes any other one by giving some heads the other rule. Heads are
        visited in turn, and of all columns so far, those of the lowest costs go on.
        """
        priced, (first, second) = self._priced(layer, prices), self.pairs
        totals = np.minimum(priced[:, first], priced[:, second]).sum(0)
        count = wanted + priced.shape[1]  # A column of one rule comes from every pair that has it.
        best = np.argsort(totals, kind="stable")[: count + 1]
        left_out = totals[best[count]] if len(best) > count else np.inf
        best = best[:count]
        totals, first, second = totals[best], first[best], second[best]
        columns = np.where(priced[:, first] <= priced[:, second], first, second).T
        others = first[:, None] + second[:, None] - columns
        for head in range(self.heads):
            changed = columns.copy()
            changed[:, head] = others[:, head]
            more = totals + priced[head, changed[:, head]] - priced[head, columns[:, head]]
            differs = (columns != changed).any(1)
            totals = np.concatenate([totals, more[differs]])
            columns, others = np.concatenate([columns, changed[differs]]), np.concatenate([others, others[differs]])
            order = np.argsort(totals, kind="stable")
            if len(order) > count:
                left_out = min(left_out, totals[order[count]])
            totals, columns, others = (each[order[:count]] for each in (totals, columns, others))
        _, place = np.unique(columns, axis=0, return_index=True)
        order = place[np.argsort(totals[place], kind="stable")]
        if len(order) > wanted:
            left_out = min(left_out, totals[order[wanted]])
        return columns[order[:wanted]], left_out - prices.of_layer[layer]

    def _rows(self, layer: int, columns: np.ndarray) -> np.ndarray:
        """Return what columns [K, heads] of a layer add to each row of the program, [rows, K]."""
        return self.adds[:, layer, np.arange(self.heads), columns].sum(-1)

    def _choose(
        self, columns: Sequence[np.ndarray], target: int, upper: np.ndarray, lower: np.ndarray
    ) -> np.ndarray | None:
        """Return the plan that HiGHS makes of the given columns of each layer, or None if none is within bounds."""
        adds = np.concatenate([self._rows(*each) for each in enumerate(columns)], 1)
        one_each = np.repeat(np.eye(self.layers), [len(each) for each in columns], axis=1)
        has_ceilings = bool(np.isfinite(upper[: self.objectives]).any())
        solution = milp(
            adds[target],
            constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(adds, lower, upper)],
            integrality=np.ones(adds.shape[1]),
            bounds=VariableBounds(0, 1),
            options={"mip_rel_gap": MIP_GAPS[has_ceilings], "node_limit": MAX_NODES[has_ceilings]},
        )
        if solution.x is None:  # The program is infeasible, or no solution was found within MAX_NODES.
            return None
        ends = np.cumsum([len(each) for each in columns])
        chosen = [int(part.argmax()) for part in np.split(solution.x, ends[:-1])]
        return np.stack([each[place] for each, place in zip(columns, chosen)])
