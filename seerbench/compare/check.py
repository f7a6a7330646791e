"""Check a kernel or method before it is timed: run the trials and find out what is wrong, where and why.

Each trial runs on fresh random inputs, with NaN in the memory that Python code allocates meanwhile (`poisoned`).
measure/correctness.py decides whether an output is right; diagnose.py guesses the mistake behind a wrong one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from seerbench.compare.diagnose import Guess, diagnose
from seerbench.compare.trials import Finding, Kernel, Trial, inputs, kept_blocks, trials
from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.core.rope import plain_rope
from seerbench.errors import MaskError, Refused
from seerbench.measure.correctness import compare_with_reference
from seerbench.methods.protocol import BlockSparse, realised_sparsity

# Plans are tried on at most this many blocks. Half of the causal blocks, which the method is asked to skip, are a
# whole number of 4 blocks, and not of 5, whose plans the top-k rule refuses.
PLANNED_BLOCKS = 4


def check_kernel(
    kernel: Kernel, problem: AttentionProblem, seed: int = 0
) -> Iterator[tuple[Trial, Finding | None]]:
    """Run every trial of a kernel; yield each with its finding, or with None if the output is right.

    An error that the kernel raises comes through, with a note that names the trial.

    Args:
        kernel: (q, k, v, mask) -> output.
        problem: gives heads, head_dim, block size, dtype and device.
        seed: seed of inputs and masks.
    """
    for number, trial in enumerate(trials(problem)):
        generator = torch.Generator().manual_seed(seed * 1_000 + number)
        q, k, v = inputs(trial, generator)
        yield trial, judge(kernel, trial, q, k, v, kept_blocks(trial, generator))


def check_method(
    make: Callable[[float], Any], problem: AttentionProblem, seed: int = 0
) -> Iterator[tuple[Trial, Finding | None]]:
    """Check that a method's plans are valid and that its `attend` follows them; then run the trials of its kernel.

    A plan that is no BlockMask is checked through its `to_token_mask`. One that has none is checked only where the
    method, asked to skip nothing, skips nothing: its output must then be dense attention. Where neither is
    possible, a trial says only whether the output depends on later keys and values (`sees_future`), and is yielded
    only if it does, since it compares nothing else. A trial that the method refuses is not yielded either. The
    kernel's trials are left out for a method that inherits `attend` from BlockSparse, whose kernel has tests of its
    own.

    Args:
        make: requested sparsity -> method.
        problem: gives heads, head_dim, block size, dtype and device.
        seed: seed of inputs and masks.
    """
    method, skips_nothing = make(0.5), make(0.0)
    all_trials = trials(problem)
    plans_are_masks = True
    for number, trial in enumerate(all_trials):
        if not trial.plans:
            continue
        if trial.problem.context > PLANNED_BLOCKS * trial.problem.block_q:
            tail = trial.problem.context % trial.problem.block_q
            context = (PLANNED_BLOCKS - 1) * trial.problem.block_q + tail
            trial = replace(trial, problem=replace(trial.problem, context=context))
        q, k, v = inputs(trial, torch.Generator().manual_seed(seed * 1_000 + len(all_trials) + number))
        layer = LayerContext(0, q, k, plain_rope(trial.problem.head_dim))
        trial = replace(trial, subject="its own plan", suspect="attend does not do what plan says")
        try:
            plan = method.plan(q, k, layer)
        except MaskError as error:
            yield trial, Finding(trial, torch.inf, 0.0, "in the plan", str(error))
            continue
        except Refused:
            continue
        if isinstance(plan, BlockMask):
            invalid = invalid_plan(plan, trial.problem)
            if invalid:
                yield trial, Finding(trial, torch.inf, 0.0, "in the plan", invalid)
            else:
                yield trial, judge(method.attend, trial, q, k, v, plan)
            continue
        plans_are_masks = False
        future = sees_future(method.attend, trial, q, k, v, plan)
        if future:
            yield trial, future
            continue
        if plan is None or plan.to_token_mask() is not None:
            yield trial, judge(method.attend, trial, q, k, v, plan)
            continue
        plan = skips_nothing.plan(q, k, layer)
        if realised_sparsity(plan) == 0.0:
            # The reference gets the plan None, which is dense; the method gets its own.
            attend = partial(_with_plan, skips_nothing.attend, plan)
            trial = replace(trial, subject="nothing skipped")
            yield trial, judge(attend, trial, q, k, v, None)
    if plans_are_masks and type(method).attend is not BlockSparse.attend:
        yield from check_kernel(method.attend, problem, seed)


def _with_plan(attend: Kernel, plan: Any, q: Tensor, k: Tensor, v: Tensor, _: None) -> Tensor:
    """Call `attend` with `plan` in place of the last argument."""
    return attend(q, k, v, plan)


def sees_future(kernel: Kernel, trial: Trial, q: Tensor, k: Tensor, v: Tensor, plan: Any) -> Finding | None:
    """Return what is wrong if outputs change when only later keys and values do, under the same plan; else None.

    The reference cannot tell this of a plan whose pairs are unknown, or are not causal themselves.

    Args:
        kernel: (q, k, v, plan) -> output.
        trial: the trial.
        q: its queries [B, Hq, N, D].
        k: its keys [B, Hk, N, D].
        v: its values [B, Hk, N, D].
        plan: the method's plan for them.
    """
    half = q.shape[2] // 2
    other_k, other_v = k.clone(), v.clone()
    other_k[:, :, half:] *= -1
    other_v[:, :, half:] *= -1
    with torch.no_grad():
        first, second = (kernel(q, *pair, plan)[:, :, :half].double() for pair in ((k, v), (other_k, other_v)))
    error = (first - second).abs().nan_to_num(torch.inf).max().item()
    # Outputs are means of values, so a kernel that may order its sums differently changes them by a few eps of the
    # largest value. The square root of eps is far above that, and far below the changes of the values themselves.
    budget = torch.finfo(v.dtype).eps ** 0.5 * v.abs().max().item()
    if error <= budget:
        return None
    guess = "looks into the future: an output depends on keys or values after its position"
    if not first.isfinite().all():
        guess = "NaN: leaves part of the output unwritten, or divides by zero"
    return Finding(trial, error, budget, f"in positions 0 to {half - 1}, of keys from {half} on", guess, True)


def invalid_plan(plan: BlockMask, problem: AttentionProblem) -> str | None:
    """Return why a method's lists of blocks are invalid for a problem, or None."""
    if plan.tokens != problem.context:
        return f"the plan is of {plan.tokens} tokens, the input of {problem.context}"
    lists = tuple(plan.kv_num_blocks.shape[:2])
    if lists != (problem.batch, problem.q_heads):
        return f"the plan has lists for {lists} (batch, heads), not one per query head"
    try:
        plan.check()
    except MaskError as error:
        return str(error)
    return None


def judge(kernel: Kernel, trial: Trial, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Finding | None:
    """Run a kernel on one trial; return what is wrong with its output, or None.

    Args:
        kernel: (q, k, v, mask) -> output.
        trial: the trial.
        q: its queries [B, Hq, N, D].
        k: its keys [B, Hk, N, D].
        v: its values [B, Hk, N, D].
        mask: a BlockMask, another plan with `to_token_mask`, or None for dense attention.
    """
    actual = output_of(kernel, trial, q, k, v, mask)
    if isinstance(actual, Finding):
        return actual
    comparison = compare_with_reference(actual, q, k, v, mask)
    if comparison.check.passed:
        return None
    exact, budget = comparison.exact, comparison.rounding_budget
    if isinstance(mask, BlockMask):
        guess, recognised = diagnose(trial, q, k, v, mask, actual, exact, budget)
    elif not actual.isfinite().all():
        guess, recognised = Guess("NaN: reads memory that it did not write, or leaves part of the output unwritten")
    else:
        guess, recognised = Guess(trial.suspect)
    return Finding(trial, comparison.check.error, budget, where(trial, actual, exact, budget), guess, recognised)


def output_of(
    kernel: Callable[..., Tensor], trial: Trial, q: Tensor, k: Tensor, v: Tensor, plan: Any
) -> Tensor | Finding:
    """Run a kernel on one trial; return its output, or what is wrong with its form or with q, k and v afterwards.

    The arguments are those of `judge`; plan: what the kernel gets as its fourth argument.
    """
    before = [x.clone() for x in (q, k, v)]
    try:
        with torch.no_grad(), poisoned():
            actual = kernel(q, k, v, plan)
    except Exception as error:
        error.add_note(f"while checking {trial.title!r}: {trial.problem}")
        raise  # an error of the kernel is never taken for a wrong output
    if not isinstance(actual, Tensor) or actual.shape != q.shape or actual.dtype != q.dtype:
        got = f"{tuple(actual.shape)} in {actual.dtype}" if isinstance(actual, Tensor) else type(actual).__name__
        guess = f"gives {got}; expected is q's shape and dtype, {tuple(q.shape)} in {q.dtype}"
        return Finding(trial, torch.inf, 0.0, "everywhere", guess)
    # NaN, which marks what a kernel must not read, differs from itself.
    if not all(((x == old) | (x.isnan() & old.isnan())).all() for x, old in zip((q, k, v), before)):
        return Finding(trial, torch.inf, 0.0, "in q, k or v", "overwrites its inputs")
    return actual


def where(trial: Trial, actual: Tensor, exact: Tensor, budget: float) -> str:
    """Return in words which batch entries, heads, query blocks and positions are wrong, and the worst element.

    Args:
        trial: the trial that failed.
        actual: the wrong output [B, Hq, N, D].
        exact: the float64 reference [B, Hq, N, D].
        budget: the error that rounding explains.
    """
    block, tokens = trial.problem.block_q, trial.problem.context
    error = (actual.double() - exact).abs()
    wrong = ~(error <= budget)
    batch, head, position, _ = wrong.nonzero(as_tuple=True)
    worst = [int(i) for i in torch.unravel_index(error.nan_to_num(torch.inf, torch.inf).argmax(), error.shape)]
    rows = wrong.any(-1).float().mean()
    blocks = position // block
    return (
        f"batch {ranges(batch)} of {wrong.shape[0]}; head {ranges(head)} of {wrong.shape[1]}; "
        f"query block {ranges(blocks)} of {block_count(tokens, block)}, "
        f"positions {int(position.min())} to {int(position.max())}; {rows:.0%} of all rows\n"
        f"           worst at [{', '.join(map(str, worst))}]: "
        f"{actual[tuple(worst)].item():.4g}, should be {exact[tuple(worst)].item():.4g}"
    )


def ranges(numbers: Tensor) -> str:
    """Return a tensor of integers as ranges: 0, 1, 2, 2, 5 -> "0-2, 5"."""
    spans: list[list[int]] = []
    for number in numbers.unique().tolist():
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill memory that Python code gets from torch.empty and similar functions with NaN, within the block.

    A kernel that leaves part of its output unwritten then gives NaN, whatever the memory held before. Memory that
    compiled code or C++ allocates is not reached.
    """

    def filled(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate(*arguments: Any, **options: Any) -> Tensor:
            memory = make(*arguments, **options)
            return memory.fill_(torch.nan) if memory.is_floating_point() else memory

        return allocate

    allocators = [(torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (Tensor, "new_empty")]
    with ExitStack() as stack:
        for owner, name in allocators:
            stack.enter_context(mock.patch.object(owner, name, filled(getattr(owner, name))))
        yield
