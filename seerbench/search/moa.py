"""Offline calibration: what MoA and MInference find out about a model before they run in it.

    moa_influence    gradient of the loss through a dense forward -> influence of every block, layer by layer
    moa_plans        influence at several lengths -> plans at several budgets, the best validated one of each
    minference_patterns   a pattern and a budget for each head, on one text

Between models and the plan files that the methods read (baselines/moa.py, baselines/minference.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seerbench.baselines.moa import reserve_for, window_blocks, windows_and_sink
from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import LayerContext
from seerbench.kernels.flex_attention import masked_attention
from seerbench.models.hugging_face import attention_method
from seerbench.models.likelihood import window_nll
from seerbench.search import moa_solver

# Upstream's lengths are 2k, 4k and 8k, bounded at 16k too and validated at 12k: shares of the longest.
LENGTHS, EXTENSION, VALIDATION = (0.25, 0.5, 1.0), 2.0, 1.5
ANSWER = 1 / 32  # of the longest length: tokens that the model continues; about a summary's 256 at 8k


@dataclass(frozen=True)
class MoAPlan:
    """A plan and how it was found."""

    alphas: np.ndarray  # [layers, heads]
    betas: np.ndarray
    about: dict[str, Any]


def moa_lengths(longest: int) -> list[int]:
    """The lengths that are profiled when the longest is `longest` tokens."""
    return [int(share * longest) for share in LENGTHS]


def moa_plans(
    model: Any,
    windows: Mapping[int, Sequence[np.ndarray]],
    validation: Sequence[np.ndarray],
    sparsities: Iterable[float | None],
    block: int,
) -> dict[float | None, MoAPlan]:
    """A plan a sparsity (None: upstream's KV density of 0.5) for one model.

    windows: at each profiled length, windows [length] of text. validation: windows that the Pareto plans of a
    budget are compared on, by the loss of every token.
    """
    lengths = sorted(windows)
    answer = int(ANSWER * lengths[-1])
    influence = [moa_influence(model, windows[length], answer, block) for length in lengths]
    extension = int(EXTENSION * lengths[-1])
    rules = moa_solver.rule_grid(lengths, extension, block)
    costs = [np.stack([moa_solver.rule_costs(layer, rules, block) for layer in layers]) for layers in influence]
    limits_of = {
        sparsity: moa_solver.bounds(rules, [*lengths, extension], block, sparsity) for sparsity in sparsities
    }
    choices_of = _choose_all(costs, list(limits_of.values()))
    plans = {}
    for (sparsity, limits), choices in zip(limits_of.items(), choices_of):
        losses = [_loss(model, validation, rules[choice], block, sparsity) for choice in choices]
        best = choices[int(np.argmin(losses))]
        about = {
            "lengths": lengths,
            "extension": extension,
            "bound": "KV density" if sparsity is None else "kept blocks",
            "most": limits.most.tolist(),
            "reached": limits.density[:, best].mean((1, 2)).tolist(),
            "pareto_plans": len(choices),
            "mip_rel_gap": moa_solver.GAP,
            "validation_nll": min(losses),
        }
        plans[sparsity] = MoAPlan(rules[best][..., 0], rules[best][..., 1], about)
    return plans


def _choose_all(costs: Sequence[np.ndarray], limits_of: Sequence[moa_solver.Bounds]) -> list[list[np.ndarray]]:
    """`choose_rules` under each of the bounds, side by side: HiGHS, nearly all of it, needs no interpreter's lock.

    Warning filters are one for all threads, and scipy makes errors of warnings while it looks at a constraint:
    where another thread only warns meanwhile, it fails. Those are chosen again, alone.
    """
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        futures = [pool.submit(moa_solver.choose_rules, costs, limits) for limits in limits_of]
    return [
        moa_solver.choose_rules(costs, limits) if isinstance(future.exception(), Warning) else future.result()
        for future, limits in zip(futures, limits_of)
    ]


def random_plan(heads: int, sparsity: float | None, block: int, seed: int, longest: int = 8192) -> MoAPlan:
    """A plan for one layer whose heads lose at random, for timings without a model."""
    lengths, extension = moa_lengths(longest), int(EXTENSION * longest)
    rules = moa_solver.rule_grid(lengths, extension, block)
    limits = moa_solver.bounds(rules, [*lengths, extension], block, sparsity)
    rng = np.random.default_rng(seed)
    wants = rng.uniform(0.02, 1.0, (1, heads, 1))  # share of the context that a head looks back
    weight = rng.exponential(1.0, (1, heads, 1))
    costs = [weight * np.exp(-density / wants) for density in limits.density[:-1]]
    plan = moa_solver.choose_rules(costs, limits)[0]
    return MoAPlan(rules[plan][..., 0], rules[plan][..., 1], {"influence": "random", "sparsity": sparsity})


def moa_influence(model: Any, windows: Sequence[np.ndarray], answer: int, block: int) -> list[Tensor]:
    """Influence of every block on the loss of the model's own greedy continuation: [Hq, n, n] a layer, the mean.

    A window loses its last `answer` tokens to the model's continuation of the rest, on which alone the loss is
    taken. Layers are profiled as the backward reaches them, so that one layer's maps exist at a time.
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
    """prompts [B, N] and `count` tokens that the model finds most likely one after the other, [B, N + count]."""
    lengths = {"max_new_tokens": count, "min_new_tokens": count}
    return model.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=False, pad_token_id=0, **lengths
    )


def backward_through(
    model: Any, tokens: Tensor, answer: int, see: Callable[[int, Tensor, Tensor, Tensor, Tensor], None]
) -> None:
    """The loss of the last `answer` of tokens [1, N], backwards; `see(layer, q, k, v, dLoss / dOutput)` meanwhile.

    Parameters get no gradients. q and the gradient are [1, Hq, N, D], k and v [1, Hk, N, D].
    """
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    model.enable_input_require_grads()
    try:
        with torch.enable_grad(), attention_method(model, _Watched(see), count=False):
            hidden = model.model(tokens, use_cache=False).last_hidden_state[0, -answer - 1 : -1]
            F.cross_entropy(model.lm_head(hidden).float(), tokens[0, -answer:]).backward()
    finally:
        model.disable_input_require_grads()
        for parameter in wanted:
            parameter.requires_grad_(True)


class _Watched:
    """Dense attention that shows what it got once the gradient of its output is known."""

    name, sparsity = "watched", None

    def __init__(self, see: Callable[[int, Tensor, Tensor, Tensor, Tensor], None]) -> None:
        self.see = see

    def refuses(self, case: Any) -> None:
        return None

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> None:
        self.layer = layer.index

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: None) -> Tensor:
        layer, seen = self.layer, [x.detach() for x in (q, k, v)]
        out = masked_attention(q, k, v)
        out.register_hook(lambda grad: self.see(layer, *seen, grad))
        return out


@torch.no_grad()
def _loss(
    model: Any, windows: Sequence[np.ndarray], rules: np.ndarray, block: int, sparsity: float | None
) -> float:
    """Mean loss under a plan, rules [layers, heads, 2], on windows of text."""
    device = next(model.parameters()).device
    with attention_method(model, _Windows(rules, block, sparsity), count=False):
        return float(np.mean([window_nll(model, torch.from_numpy(w).long().to(device)) for w in windows]))


class _Windows:
    """A plan of MoA in the masked form, which is exact and needs no compilation."""

    name = "moa"

    def __init__(self, rules: np.ndarray, block: int, sparsity: float | None) -> None:
        self.rules, self.block, self.sparsity = rules, block, sparsity

    def refuses(self, case: Any) -> None:
        return None

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        windows = window_blocks(*self.rules[layer.index].T, q.shape[2], self.block, reserve_for(self.sparsity))
        return windows_and_sink(windows, q.shape[0], q.shape[2], self.block, q.device)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockMask) -> Tensor:
        return masked_attention(q, k, v, plan)
