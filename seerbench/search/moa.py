"""Search MoA's plans for a model: profile it, solve for rules, and keep the plans that lose least on held-out text.

    moa_influence   gradient of the loss through a dense forward pass -> influence of every block, layer by layer
    moa_plans       influence at several lengths -> for each sparsity, the plan that is best on other text
    random_plan     a plan without a model, for timings

This is the offline part of MoA. moa_solver.py chooses the rules; the step `profile` writes the plans to files,
which the method (baselines/moa.py) reads. Source: arXiv:2406.14909, section 4.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seerbench.baselines.moa import window_blocks, windows_and_sink
from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.kernels.flex_attention import masked_attention
from seerbench.methods.protocol import Method
from seerbench.models.hugging_face import attention_method
from seerbench.models.likelihood import window_nll
from seerbench.search import moa_solver

# Lengths as shares of the longest profiled one. Upstream profiles 2k, 4k and 8k, bounds plans at 16k too, and
# validates them at 12k.
LENGTHS, EXTENSION, VALIDATION = (0.25, 0.5, 1.0), 2.0, 1.5
# Length of the model's continuation as a share of the longest length. At 8k it has 256 tokens.
ANSWER = 1 / 32
# All plans are compared on the first window, and this many of them on all windows.
FINALISTS = 6
# Lengths, in blocks, at which plans for random influence are bounded: 2k to 128k tokens in blocks of 64. Without a
# requested sparsity, the first four.
RANDOM_BLOCKS = (32, 64, 128, 256, 512, 2048)
# Smallest and largest density at which the cost of a random head has fallen to 1/e, for `random_plan`.
RANDOM_REACH = (0.02, 1.0)

# A requested sparsity, or None for upstream's KV density, and the number of block rows at the end that are dense.
Budget: TypeAlias = "tuple[float | None, int]"
# Receives the layer's index, q [1, Hq, N, D], k and v [1, Hk, N, D], and dLoss / dOutput [1, Hq, N, D].
GradientFunction = Callable[[int, Tensor, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True)
class MoAPlan:
    """A rule for every head of a model: at a context of N tokens, head h spans alpha_h + beta_h * N of them."""

    alphas: np.ndarray  # [layers, heads]
    betas: np.ndarray  # [layers, heads]
    provenance: dict[str, Any]  # how the plan was found, as JSON


def moa_lengths(longest: int) -> list[int]:
    """Return the lengths that are profiled, in tokens, when the longest is `longest`."""
    return [int(share * longest) for share in LENGTHS]


def moa_plans(
    model: Any,
    windows: Mapping[int, Sequence[np.ndarray]],
    validation: Sequence[np.ndarray],
    budgets: Iterable[Budget],
    block: int,
) -> dict[Budget, MoAPlan]:
    """Search one plan per budget for a model.

    The Pareto-optimal plans, and the uniform ones within the bounds, which give all heads one rule, are compared on
    `validation`: all on its first window, then the best FINALISTS on all windows, together with StreamingLLM's
    window of the same budget. The plan of the lowest loss is taken, so it is no worse there than StreamingLLM.
    This window is left out if the bounds forbid it.

    Args:
        model: a causal language model of transformers.
        windows: profiled length -> windows of text, each int [length].
        validation: windows of one length; the loss is that of every token.
        budgets: requested share of skipped blocks, or None for upstream's KV density; and number of dense rows.
        block: tokens per block.

    Raises:
        ConfigError: a sparsity is too high for any plan.
    """
    lengths = sorted(windows)
    answer = int(ANSWER * lengths[-1])
    influence = [moa_influence(model, windows[length], answer, block) for length in lengths]
    every = [*lengths, int(EXTENSION * lengths[-1])]
    validated = len(validation[0]) - 1  # The last token is not read.
    programs = {}
    for sparsity, rows in budgets:
        rules = moa_solver.rule_grid(lengths, every[-1], block, sparsity, rows, validated)
        costs = [
            np.stack([moa_solver.rule_costs(layer, rules, block, sparsity, rows) for layer in layers])
            for layers in influence
        ]
        programs[sparsity, rows] = rules, costs, moa_solver.bounds(rules, every, block, sparsity, rows)
    choices_of = choose_in_parallel([(costs, limits) for _, costs, limits in programs.values()])
    plans = {}
    for (budget, (rules, costs, limits)), pareto in zip(programs.items(), choices_of):
        uniform = moa_solver.uniform_plans(limits)
        choices = [*pareto, *(np.full(costs[0].shape[:2], rule) for rule in uniform)]
        streaming = [
            place
            for place, rule in enumerate(uniform, len(pareto))
            if moa_solver.is_streaming(rules[rule], validated, block, *budget)
        ][:1]
        first = [_validation_loss(model, validation[:1], rules[choice], block, *budget) for choice in choices]
        finalists = sorted({*np.argsort(first, kind="stable")[:FINALISTS].tolist(), *streaming})
        losses = [_validation_loss(model, validation, rules[choices[place]], block, *budget) for place in finalists]
        place = finalists[int(np.argmin(losses))]
        best = choices[place]
        provenance = {
            "lengths": lengths,
            "extension": every[-1],
            "bound": "KV density" if budget[0] is None else "kept blocks",
            "last_rows_dense": budget[1],
            "most": limits.max_density.tolist(),
            "reached": limits.density[:, best].mean((1, 2)).tolist(),
            "pareto_plans": len(pareto),
            "uniform_plans": len(uniform),
            "streaming_validated": bool(streaming),
            "chosen": "Pareto-optimal" if place < len(pareto) else "uniform",
            "validation_nll": min(losses),
        }
        plans[budget] = MoAPlan(rules[best][..., 0], rules[best][..., 1], provenance)
    return plans


def choose_in_parallel(
    programs: Sequence[tuple[Sequence[np.ndarray], moa_solver.Bounds]],
) -> list[list[np.ndarray]]:
    """Call `moa_solver.choose_rules` for costs and bounds, in threads: HiGHS releases the interpreter's lock.

    Warning filters are process-wide, and scipy turns warnings into errors while it validates a constraint, so an
    unrelated warning in another thread may raise. Choices that fail in this way are repeated one after the other.
    """
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        futures = [pool.submit(moa_solver.choose_rules, *program) for program in programs]
    return [
        moa_solver.choose_rules(*program) if isinstance(future.exception(), Warning) else future.result()
        for future, program in zip(futures, programs)
    ]


def random_plan(heads: int, block: int, seed: int, sparsity: float | None, last_rows_dense: int = 0) -> MoAPlan:
    """Return a plan of one layer for random influence, for timings without a model.

    The heads differ as those of a searched plan do, since the time of a kernel depends on their differences. With a
    requested sparsity, spans are in proportion to the context or those of `budget_rules`, so that a plan has about
    the same sparsity at every context.

    Args:
        heads: query heads.
        block: tokens per block.
        seed: the same seed gives the same plan.
        sparsity: requested share of skipped blocks; None requests upstream's KV density.
        last_rows_dense: number of block rows at the end that keep every block.

    Raises:
        ConfigError: no plan keeps the budget.
    """
    lengths = [n * block for n in (RANDOM_BLOCKS if sparsity is not None else RANDOM_BLOCKS[:4])]
    if sparsity is None:
        rules = moa_solver.rule_grid(lengths[:-1], lengths[-1], block)
    else:
        shares = [(0.0, beta) for beta in moa_solver.FINE_BETAS]
        rules = np.array(shares + moa_solver.budget_rules(lengths, block, sparsity, last_rows_dense))
    limits = moa_solver.bounds(rules, lengths, block, sparsity, last_rows_dense)
    limits = replace(limits, min_density=limits.min_uniform, max_density=limits.max_uniform)
    rng = np.random.default_rng(seed)
    reach = rng.uniform(*RANDOM_REACH, (1, heads, 1))
    weight = rng.exponential(1.0, (1, heads, 1))
    costs = [weight * np.exp(-density / reach) for density in limits.density[-2:-1]]
    plan = moa_solver.choose_rules(costs, limits)[0]
    return MoAPlan(rules[plan][..., 0], rules[plan][..., 1], {"influence": "random", "sparsity": sparsity})


def moa_influence(model: Any, windows: Sequence[np.ndarray], answer: int, block: int) -> list[Tensor]:
    """Return the influence of every block on the loss of the model's own greedy continuation.

    The model's continuation replaces the last `answer` tokens of each window, and the loss is that of the
    continuation. Layers are profiled when the backward pass reaches them, so the maps of one layer exist at a
    time.

    Args:
        model: a causal language model of transformers.
        windows: text of equal length, each int [N].
        answer: tokens of the continuation.
        block: tokens per block.

    Returns:
        float32 [Hq, n, n] for each layer, the mean over windows (`moa_solver.layer_influence`).
    """
    total: dict[int, Tensor] = {}
    device = next(model.parameters()).device

    def see(layer: int, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> None:
        total[layer] = total.get(layer, 0) + moa_solver.layer_influence(q, k, v, grad, block)

    prompts = torch.from_numpy(np.stack([window[: len(window) - answer] for window in windows])).long()
    for tokens in _continued(model, prompts.to(device), answer):
        backward_through(model, tokens[None], answer, see)
    return [total[layer] / len(windows) for layer in sorted(total)]


@torch.no_grad()
def _continued(model: Any, prompts: Tensor, count: int) -> Tensor:
    """Return prompts [B, N] with `count` greedily generated tokens each, int64 [B, N + count]."""
    lengths = {"max_new_tokens": count, "min_new_tokens": count}
    return model.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=False, pad_token_id=0, **lengths
    )


def backward_through(model: Any, tokens: Tensor, answer: int, see: GradientFunction) -> None:
    """Run the loss of the last tokens backward, and call `see(layer, q, k, v, gradient)` in every layer.

    Parameters get no gradients.

    Args:
        model: a causal language model of transformers.
        tokens: int64 [1, N].
        answer: the loss is the mean over this many tokens at the end.
        see: called from the last layer to the first, once the gradient of the layer's output is known.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    model.enable_input_require_grads()
    try:
        with torch.enable_grad(), attention_method(model, _GradientTap(see), count=False):
            hidden = model.model(tokens, use_cache=False).last_hidden_state[0, -answer - 1 : -1]
            F.cross_entropy(model.lm_head(hidden).float(), tokens[0, -answer:]).backward()
    finally:
        model.disable_input_require_grads()
        for parameter in trainable:
            parameter.requires_grad_(True)


class _GradientTap(Method[None]):
    """Dense attention that passes its inputs to a function once the gradient of its output is known."""

    name, sparsity = "gradient-tap", None
    corrects_skipped = True  # `attend` does more than attention, so masked attention cannot replace it

    def __init__(self, see: GradientFunction) -> None:
        self.see = see

    def refuses(self, problem: AttentionProblem) -> None:
        return None

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> None:
        self.layer = layer.index

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: None) -> Tensor:
        layer, out = self.layer, masked_attention(q, k, v)
        q, k, v = q.detach(), k.detach(), v.detach()
        out.register_hook(lambda grad: self.see(layer, q, k, v, grad))
        return out


@torch.no_grad()
def _validation_loss(
    model: Any,
    windows: Sequence[np.ndarray],
    rules: np.ndarray,
    block: int,
    sparsity: float | None,
    last_rows_dense: int,
) -> float:
    """Return the mean loss in nats per token on windows of text under a plan, rules [layers, heads, 2]."""
    device = next(model.parameters()).device
    with attention_method(model, _MaskedMoA(rules, block, sparsity, last_rows_dense), count=False):
        return float(np.mean([window_nll(model, torch.from_numpy(w).long().to(device)) for w in windows]))


class _MaskedMoA(Method[BlockMask]):
    """MoA under one plan in masked attention, which is exact and needs no compilation."""

    name = "moa"
    block: int

    def __init__(self, rules: np.ndarray, block: int, sparsity: float | None, last_rows_dense: int) -> None:
        self.rules, self.block, self.sparsity = rules, block, sparsity
        self.last_rows_dense = last_rows_dense

    def refuses(self, problem: AttentionProblem) -> None:
        return None

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        alphas, betas = self.rules[layer.index].T
        windows = window_blocks(alphas, betas, q.shape[2], self.block, self.sparsity, self.last_rows_dense)
        return windows_and_sink(windows, q.shape[0], q.shape[2], self.block, q.device)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockMask) -> Tensor:
        return masked_attention(q, k, v, plan)
