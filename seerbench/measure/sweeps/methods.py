"""Time whole methods on the attention of one layer: planning, attention, and both together (Figures 4, 5 and 6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.measure.cells import CellTimer, Entry, Prepared, Rows, joined
from seerbench.measure.correctness import check_method
from seerbench.measure.gpu_lock import exclusive
from seerbench.measure.inputs import InputSource
from seerbench.measure.sampler import Call, Timing
from seerbench.measure.sweeps.entries import by_sparsity, flops, method_entry
from seerbench.methods.protocol import Method, realised_sparsity


@torch.no_grad()
def methods_sweep(
    inputs: InputSource,
    attention: tuple[Tensor, Tensor, Tensor, LayerContext],
    methods: Iterable[tuple[str, Method]],
    timing: Timing,
    run_id: str,
    block: int = 64,
) -> Rows:
    """Time methods on one layer's q, k and v, one cell per requested sparsity (`by_sparsity`).

    Stages are plan, attend and total (one call that does both), and score and select where a method has them. A
    dense method plans nothing, so its only stage is attend. A method that meets its sparsity by searching for a
    threshold searches before the clock runs.

    Args:
        inputs: what q, k and v are.
        attention: (q, k, v, layer context), as `capture` and `random_attention` return them.
        methods: (name in the rows, method) pairs.
        timing: the number of rounds.
        run_id: the execution that the rows belong to.
        block: the block size of methods without one of their own.
    """
    q, k, v, layer = attention
    problem = AttentionProblem.of(q, k, block, block)

    def entries(group: Mapping[str, Method]) -> Iterable[Entry]:
        for name, method in group.items():

            def prepare(method: Method = method) -> Prepared:
                if method.sparsity is not None:
                    method = method.with_threshold_for(q, k, layer)
                check = check_method(method, q, k, v, layer)
                plan = method.plan(q, k, layer)
                stages = method_stages(method, q, k, v, layer, plan)
                last = next(reversed(stages))  # total, or attend of a dense method
                return Prepared(
                    stages, last, realised_sparsity(plan), flops(plan, problem), check, dense=plan is None
                )

            yield method_entry(name, method, problem, prepare)

    timer = CellTimer("methods", problem, inputs, timing, run_id)
    with exclusive(q.device.type):
        return joined(timer.measure(sparsity, entries(group)) for sparsity, group in by_sparsity(methods).items())


def method_stages(
    method: Method, q: Tensor, k: Tensor, v: Tensor, layer: LayerContext, plan: Any
) -> dict[str, Call]:
    """Return the calls of a method by stage, in the order in which they are timed.

    Args:
        method: the method.
        q: queries [B, Hq, N, D], rotated.
        k: keys [B, Hk, N, D], rotated.
        v: values [B, Hk, N, D].
        layer: the layer context.
        plan: the plan with which the stage `attend` is timed; None for a dense method.
    """
    stages: dict[str, Call] = {}
    if plan is None:
        return {"attend": lambda: method.attend(q, k, v, None)}
    scores = method.score(q, k, layer)
    if scores is not None:
        stages["score"] = lambda: method.score(q, k, layer)
        stages["select"] = lambda: method.select(scores, q.shape[2])
    return stages | {
        "plan": lambda: method.plan(q, k, layer),
        "attend": lambda: method.attend(q, k, v, plan),
        "total": lambda: method.attend(q, k, v, method.plan(q, k, layer)),
    }
