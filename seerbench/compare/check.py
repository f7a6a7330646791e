"""Is a kernel right, and if not, where and why? What `seerbench compare` asks before it times anything.

A trial is a small case with one difficulty: a tail block, rows without a block, grouped heads, inputs that
are views. Trials come in order of difficulty. Each runs on fresh random inputs, with NaN in the memory that
the kernel allocates (`poisoned`), and is judged against the float64 oracle by attention.py's tolerance.

A wrong answer is explained by comparing it with the answers of usual mistakes (`MISTAKES`): a kernel that
ignores the mask gives dense attention exactly, and so on. Where none fits, the place of the error speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from seerbench.compare.diagnose import MISTAKES, _guess
from seerbench.compare.trials import Finding, Kernel, Trial, inputs, kept_blocks, trials
from seerbench.core import rope
from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.core.reference import reference_attention
from seerbench.core.tolerance import error_and_budget
from seerbench.methods.protocol import BlockSparse, realised_sparsity


def check_kernel(kernel: Kernel, case: AttentionProblem, seed: int = 0) -> Iterator[tuple[Trial, Finding | None]]:
    """Run every trial that fits `case`; yields each with what is wrong, or None.

    An exception inside the kernel is the kernel's: it comes through, with the trial as a note.
    """
    for number, trial in enumerate(trials(case)):
        generator = torch.Generator().manual_seed(seed * 1_000 + number)
        q, k, v = inputs(trial, generator)
        yield trial, _judge(kernel, trial, q, k, v, kept_blocks(trial, generator))


def check_method(
    make: Callable[[float], Any], case: AttentionProblem, seed: int = 0
) -> Iterator[tuple[Trial, Finding | None]]:
    """A whole method: its plans are lawful, and `attend` obeys them; then the kernel's trials.

    make: sparsity -> method. A plan that is no BlockMask is checked through its `to_token_mask`; one without
    it only where the method, asked to skip nothing, says that it skips nothing: the output is then dense
    attention. Trials in which neither is possible are not yielded, since they compared nothing. A method that
    inherits `attend` is spared the kernel's trials: the kernel has its own tests.
    """
    method, whole, last = make(0.5), make(0.0), len(trials(case))
    own_plans = True
    for number, trial in enumerate(trials(case)):
        if trial.name not in ("grouped heads", "a tail block", "shorter than a block"):
            continue
        q, k, v = inputs(trial, torch.Generator().manual_seed(seed * 1_000 + last + number))
        layer = LayerContext(0, q, k, rope.plain_rope(trial.case.head_dim))
        plan = method.plan(q, k, layer)
        trial = replace(trial, name=f"its own plan, {trial.name}", suspect="attend does not do what plan says")
        if isinstance(plan, BlockMask):
            unlawful = _unlawful(plan, trial.case)
            if unlawful:
                yield trial, Finding(trial, torch.inf, 0.0, "in the plan", unlawful)
            else:
                yield trial, _judge(method.attend, trial, q, k, v, plan)
            continue
        own_plans = False
        if plan is None or plan.to_token_mask() is not None:
            yield trial, _judge(method.attend, trial, q, k, v, plan)
            continue
        plan = whole.plan(q, k, layer)
        if realised_sparsity(plan) == 0.0:
            trial = replace(trial, name=f"nothing skipped, {trial.name.split(', ')[1]}")
            # The oracle's plan is None, dense; the method is handed its own.
            attend = partial(_with_plan, whole.attend, plan)
            yield trial, _judge(attend, trial, q, k, v, None)
    if own_plans and type(method).attend is not BlockSparse.attend:
        yield from check_kernel(method.attend, case, seed)


def _with_plan(attend: Kernel, plan: Any, q: Tensor, k: Tensor, v: Tensor, _: None) -> Tensor:
    return attend(q, k, v, plan)


def _unlawful(plan: BlockMask, case: AttentionProblem) -> str | None:
    """What a method's lists may not be, or None."""
    if plan.tokens != case.context:
        return f"the plan is of {plan.tokens} tokens, the input of {case.context}"
    if plan.kv_num_blocks.shape[:2] != (case.batch, case.q_heads):
        return f"the plan has lists for {tuple(plan.kv_num_blocks.shape[:2])} (batch, heads), not one a query head"
    listed = torch.arange(plan.kv_indices.shape[-1], device=plan.kv_indices.device) < plan.kv_num_blocks[..., None]
    steps = plan.kv_indices.diff(dim=-1)
    if (steps[listed[..., 1:]] <= 0).any():
        return "a row's key blocks do not ascend, or one is listed twice"
    seen = BlockMask.from_dense(plan.to_dense(), plan.tokens, plan.block_q, plan.block_k)
    if not torch.equal(seen.kv_num_blocks, plan.kv_num_blocks):
        return "the plan lists a key block of the future, or one that does not exist"
    return None


def _judge(kernel: Kernel, trial: Trial, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Finding | None:
    """mask: a BlockMask, another plan with a `to_token_mask`, or None for dense attention."""
    before = [x.clone() for x in (q, k, v)]
    with ExitStack() as stack:
        # Not caught: what the kernel raises comes through, with a note on where it happened.
        stack.push(
            lambda kind, error, trace: error and error.add_note(f"while checking {trial.name!r}: {trial.case}")
        )
        with torch.no_grad(), poisoned():
            actual = kernel(q, k, v, mask)
    if not isinstance(actual, Tensor) or actual.shape != q.shape or actual.dtype != q.dtype:
        got = f"{tuple(actual.shape)} in {actual.dtype}" if isinstance(actual, Tensor) else type(actual).__name__
        guess = f"gives {got} where q's shape and dtype are due, {tuple(q.shape)} in {q.dtype}"
        return Finding(trial, torch.inf, 0.0, "everywhere", guess)
    if not all(torch.equal(x, old) for x, old in zip((q, k, v), before)):
        return Finding(trial, torch.inf, 0.0, "in q, k or v", "overwrites its inputs")
    exact, rounded = reference_attention(q, k, v, mask)[0], reference_attention(q, k, v, mask, q.dtype)[0]
    error, budget = error_and_budget(actual, exact, rounded)
    if error <= budget:
        return None
    # error_and_budget has no budget for NaN; the finite part is still compared by the usual one.
    budget = error_and_budget(rounded, exact, rounded)[1]
    miss = (actual.double() - exact).abs()
    wrong = ~(miss <= budget)
    guess = trial.suspect
    if isinstance(mask, BlockMask):
        guess = _guess(trial, q, k, v, mask, actual, exact, budget, wrong)
    elif not actual.isfinite().all():
        guess = "NaN: reads memory that it did not write, or leaves part of the output unwritten"
    return Finding(trial, error, budget, _where(trial, actual, exact, wrong, miss), guess)


def _where(trial: Trial, actual: Tensor, exact: Tensor, wrong: Tensor, miss: Tensor) -> str:
    """The batch entries, heads, query blocks and positions that are wrong, and the worst element."""
    block, tokens = trial.case.block_q, trial.case.context
    batch, head, position, _ = wrong.nonzero(as_tuple=True)
    worst = [int(i) for i in torch.unravel_index(miss.nan_to_num(torch.inf, torch.inf).argmax(), miss.shape)]
    rows = wrong.any(-1).float().mean()
    blocks = position // block
    return (
        f"batch {_ranges(batch)} of {wrong.shape[0]}; head {_ranges(head)} of {wrong.shape[1]}; "
        f"query block {_ranges(blocks)} of {block_count(tokens, block)}, "
        f"positions {int(position.min())} to {int(position.max())}; {rows:.0%} of all rows\n"
        f"           worst at [{', '.join(map(str, worst))}]: "
        f"{actual[tuple(worst)].item():.4g}, should be {exact[tuple(worst)].item():.4g}"
    )


def _ranges(numbers: Tensor) -> str:
    """tensor of 0, 1, 2, 2, 5 -> "0-2, 5"."""
    parts: list[list[int]] = []
    for number in numbers.unique().tolist():
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that Python code gets from torch.empty and its kin holds NaN meanwhile.

    A kernel that leaves part of its output unwritten then shows it, whatever the memory held before.
    Memory that compiled code or C++ takes is out of reach.
    """

    def filled(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate(*arguments: Any, **options: Any) -> Tensor:
            memory = make(*arguments, **options)
            return memory.fill_(torch.nan) if memory.is_floating_point() else memory

        return allocate

    with ExitStack() as stack:
        for owner, name in (
            (torch, "empty"),
            (torch, "empty_like"),
            (torch, "empty_strided"),
            (Tensor, "new_empty"),
        ):
            stack.enter_context(mock.patch.object(owner, name, filled(getattr(owner, name))))
        yield


def explain(findings: Iterable[Finding]) -> str:
    """The findings for a person: the first of each guess in full; where a usual mistake is recognised, only those.

    Other trials then fail for the same reason, and what they would suspect by themselves leads astray.
    """
    first: dict[str, Finding] = {}
    for finding in findings:
        first.setdefault(finding.guess, finding)
    recognised = [finding for guess, finding in first.items() if guess in MISTAKES]
    return "\n".join(map(str, recognised or first.values()))
