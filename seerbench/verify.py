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
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from seerbench import latency
from seerbench.attention import (
    BlockMask,
    BlockSparse,
    Case,
    Layer,
    block_count,
    error_and_budget,
    oracle,
    realised_sparsity,
    repeat_kv,
)

Kernel = Callable[[Tensor, Tensor, Tensor, BlockMask], Tensor]
COARSE = 0.02  # an error below this share of the largest output is one of precision, not of logic


@dataclass(frozen=True)
class Trial:
    """One thing to get right: a case, the blocks kept in it, and what to suspect when it alone fails."""

    name: str
    case: Case
    pattern: str  # see `kept_blocks`
    suspect: str
    scale: float = 1.0  # of q: 40 gives scores that overflow exp without the row's maximum
    views: bool = False  # q, k, v as a model hands them: [B, N, H, D] transposed, NaN beyond the last token


@dataclass(frozen=True)
class Finding:
    """A trial that failed: by how much, where, and a guess why (a guess, and it says so)."""

    trial: Trial
    error: float
    budget: float
    where: str
    guess: str

    def __str__(self) -> str:
        case = self.trial.case
        return "\n".join(
            (
                f"{self.trial.name}: {case.context} tokens, batch {case.batch}, blocks of {case.block_q}, "
                f"{case.q_heads} query over {case.kv_heads} key/value heads of {case.head_dim}, {case.dtype}",
                f"    error  {self.error:.2e}, may be {self.budget:.2e}",
                f"    where  {self.where}",
                f"    guess  {self.guess}",
            )
        )


def trials(case: Case) -> list[Trial]:
    """The trials at a case's heads, head_dim, block, dtype and device; its context and batch are replaced.

    Few distinct shapes, since a compiled kernel compiles once for each.
    """
    block = max(case.block_q, case.block_k)
    whole = replace(case, batch=1, context=4 * block)
    tail = replace(whole, context=4 * block + block // 2 + 1)
    short = replace(whole, context=block // 2 + 1)
    plain = replace(whole, kv_heads=case.q_heads)
    many = replace(tail, batch=2)
    groups = f"{case.q_heads} query heads read {case.kv_heads} key/value heads"
    found = [
        Trial("every block kept", plain, "full", "wrong in plain causal attention"),
        Trial("half of the blocks", plain, "random", "wrong lists: kv_indices[..., :kv_num_blocks] are the blocks"),
        Trial("grouped heads", whole, "random", f"wrong key/value head (GQA): {groups}"),
        Trial("large scores", whole, "random", "softmax overflows: subtract the row's maximum", scale=40.0),
        Trial("a tail block", tail, "random", "wrong in the tail block"),
        Trial("the diagonal alone", tail, "diagonal", "wrong in the diagonal block"),
        Trial("the first block alone", tail, "first", "expects the diagonal block in each list; it may be skipped"),
        Trial("rows without a block", tail, "empty rows", "wrong on a row without a block, whose output is 0"),
        Trial("nothing kept", tail, "nothing", "wrong on rows without a block, whose output is 0"),
        Trial("shorter than a block", short, "full", "wrong when there are fewer tokens than a block has"),
        Trial("a batch of views", many, "random", "assumes contiguous inputs, or a batch of one", views=True),
    ]
    return [trial for trial in found if trial.name != "grouped heads" or case.q_heads != case.kv_heads]


def kept_blocks(trial: Trial, generator: torch.Generator) -> BlockMask:
    """The trial's block mask, of its own pattern in every head and batch entry."""
    case = trial.case
    rows, columns = block_count(case.context, case.block_q), block_count(case.context, case.block_k)
    shape = (case.batch, case.q_heads, rows, columns)
    last_query = torch.arange(rows) * case.block_q + case.block_q - 1
    diagonal = torch.arange(columns) == (last_query.clamp(max=case.context - 1) // case.block_k)[:, None]
    random = (torch.rand(shape, generator=generator) < 0.5) | diagonal
    empty = (torch.arange(rows)[:, None] + torch.arange(case.q_heads)[:, None, None]) % 2 == 0  # by row and head
    kept = {
        "full": torch.ones(shape, dtype=torch.bool),
        "random": random,
        "diagonal": diagonal.expand(shape),
        "first": (torch.arange(columns) == 0).expand(shape),
        "empty rows": random & ~empty,
        "nothing": torch.zeros(shape, dtype=torch.bool),
    }[trial.pattern]
    return BlockMask.from_dense(kept.to(case.device), case.context, case.block_q, case.block_k)


def inputs(trial: Trial, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Normal q [B, Hq, N, D], k and v [B, Hk, N, D], drawn on the CPU so that a seed means one thing."""
    case = trial.case

    def draw(heads: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(case.batch, case.context, heads, case.head_dim, generator=generator) * scale
        values = values.to(case.device, getattr(torch, case.dtype))
        if not trial.views:
            return values.transpose(1, 2).contiguous()
        memory = values.new_full((case.batch, case.context + case.block_k, heads, case.head_dim), torch.nan)
        memory[:, : case.context] = values
        return memory[:, : case.context].transpose(1, 2)

    return draw(case.q_heads, trial.scale), draw(case.kv_heads), draw(case.kv_heads)


def check_kernel(kernel: Kernel, case: Case, seed: int = 0) -> Iterator[tuple[Trial, Finding | None]]:
    """Run every trial that fits `case`; yields each with what is wrong, or None.

    An exception inside the kernel is the kernel's: it comes through, with the trial as a note.
    """
    for number, trial in enumerate(trials(case)):
        generator = torch.Generator().manual_seed(seed * 1_000 + number)
        q, k, v = inputs(trial, generator)
        yield trial, _judge(kernel, trial, q, k, v, kept_blocks(trial, generator))


def check_method(make: Callable[[float], Any], case: Case, seed: int = 0) -> Iterator[tuple[Trial, Finding | None]]:
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
        layer = Layer(0, q, k, latency.plain_rope(trial.case.head_dim))
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
        if plan is None or hasattr(plan, "to_token_mask"):
            yield trial, _judge(method.attend, trial, q, k, v, plan)
            continue
        plan = whole.plan(q, k, layer)
        if realised_sparsity(plan) == 0.0:
            trial = replace(trial, name=f"nothing skipped, {trial.name.split(', ')[1]}")
            # The oracle's plan is None, dense; the method is handed its own.
            attend = partial(_with_plan, whole.attend, plan)
            yield trial, _judge(attend, trial, q, k, v, None)
    if own_plans and getattr(type(method), "attend", None) is not BlockSparse.attend:
        yield from check_kernel(method.attend, case, seed)


def _with_plan(attend: Kernel, plan: Any, q: Tensor, k: Tensor, v: Tensor, _: None) -> Tensor:
    return attend(q, k, v, plan)


def _unlawful(plan: BlockMask, case: Case) -> str | None:
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
    exact, rounded = oracle(q, k, v, mask)[0], oracle(q, k, v, mask, q.dtype)[0]
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


# Usual mistakes: what each would give instead of the right answer.


def _softmax(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float | None = None) -> Tensor:
    """float64 attention over the pairs `seen` [.., N, N]; rows that see nothing give 0."""
    q, k, v = q.double(), repeat_kv(k, q.shape[1]).double(), repeat_kv(v, q.shape[1]).double()
    scores = (q @ k.transpose(-1, -2)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0) @ v


def _tokens(kept: Tensor, mask: BlockMask, causal: bool = True) -> Tensor:
    """bool [B, Hq, nq, nk] -> bool [B, Hq, N, N]."""
    n = mask.tokens
    seen = kept.repeat_interleave(mask.block_q, -2)[..., :n, :].repeat_interleave(mask.block_k, -1)[..., :n]
    return seen.tril() if causal else seen


def _without_last(mask: BlockMask) -> Tensor:
    kept = mask.to_dense()
    last = torch.arange(kept.shape[-1], device=kept.device).where(kept, -1).amax(-1, keepdim=True)
    return kept & (torch.arange(kept.shape[-1], device=kept.device) != last)


def _with_padding(mask: BlockMask) -> Tensor:
    kept = mask.to_dense()
    kept[..., 0] |= mask.kv_num_blocks < mask.kv_indices.shape[-1]
    return kept


def _with_diagonal(mask: BlockMask) -> Tensor:
    first = torch.arange(mask.kv_num_blocks.shape[-1], device=mask.kv_indices.device) * mask.block_q
    columns = torch.arange(block_count(mask.tokens, mask.block_k), device=mask.kv_indices.device) * mask.block_k
    crosses = (columns < (first + mask.block_q)[:, None]) & (columns + mask.block_k > first[:, None])
    return mask.to_dense() | crosses


def _modulo(x: Tensor, heads: int) -> Tensor:
    return x[:, torch.arange(heads, device=x.device) % x.shape[1]]


MISTAKES: dict[str, Callable[[Tensor, Tensor, Tensor, BlockMask], Tensor]] = {
    "ignores the mask: the output is that of dense causal attention": lambda q, k, v, m: _softmax(
        q, k, v, _tokens(torch.ones_like(m.to_dense()), m)
    ),
    "ignores the mask, and is not causal": lambda q, k, v, m: _softmax(
        q, k, v, _tokens(torch.ones_like(m.to_dense()), m, causal=False)
    ),
    "not causal inside the diagonal block": lambda q, k, v, m: _softmax(q, k, v, _tokens(m.to_dense(), m, False)),
    "wrong key/value head (GQA): query head h reads h % Hk; it should read h // (Hq / Hk)": lambda q, k, v, m: (
        _softmax(q, _modulo(k, q.shape[1]), _modulo(v, q.shape[1]), m.to_token_mask())
    ),
    "takes head 0's lists for every head": lambda q, k, v, m: _softmax(
        q, k, v, m.to_token_mask()[:, :1].expand(-1, q.shape[1], -1, -1)
    ),
    "takes batch entry 0's lists for the whole batch": lambda q, k, v, m: _softmax(q, k, v, m.to_token_mask()[:1]),
    "forgets to scale the scores by 1 / sqrt(head_dim)": lambda q, k, v, m: _softmax(
        q, k, v, m.to_token_mask(), scale=1.0
    ),
    "reads the padding of kv_indices (zeros, so block 0): stop after kv_num_blocks": lambda q, k, v, m: _softmax(
        q, k, v, _tokens(_with_padding(m), m)
    ),
    "drops the last block of each list": lambda q, k, v, m: _softmax(q, k, v, _tokens(_without_last(m), m)),
    "computes the diagonal block where it is not listed": lambda q, k, v, m: _softmax(
        q, k, v, _tokens(_with_diagonal(m), m)
    ),
}  # fmt: skip


def _guess(
    trial: Trial,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask,
    actual: Tensor,
    exact: Tensor,
    budget: float,
    wrong: Tensor,
) -> str:
    """Why, as far as the output tells."""
    rows = wrong.any(-1)  # [B, Hq, N]
    empty = ~mask.to_token_mask().any(-1)
    tail = torch.arange(mask.tokens, device=q.device) >= mask.tokens // mask.block_q * mask.block_q
    if not actual.isfinite().all():
        lost = (~actual.isfinite()).any(-1)
        if empty.any() and torch.equal(lost, empty.expand_as(lost)):
            return (
                "NaN on a row without a block: 0 / 0 in its softmax, or an output never written; such a row gives 0"
            )
        if trial.scale > 1:
            return trial.suspect
        if not rows[..., ~tail].any():
            return "NaN in the tail block: reads past the last token, or leaves its rows unwritten"
        if trial.views:
            return "NaN from beyond the last token of a view: assumes contiguous inputs, or reads past the end"
        return "NaN: reads memory that it did not write, or leaves part of the output unwritten"
    for text, mistake in MISTAKES.items():
        other = mistake(q, k, v, mask)
        near = 4 * budget + 16 * torch.finfo(q.dtype).eps * other.abs().max()
        # A mistake that this trial cannot tell from the truth explains nothing.
        if (other - exact).abs().max() > 2 * near and (actual.double() - other).abs().max() <= near:
            return text
    if not rows[~empty].any():
        return "wrong on a row without a block: its output is 0, not that of any other row or mask"
    if tail.any() and not rows[..., ~tail].any():
        return "wrong in the tail block: its last rows, when the length is no multiple of the block"
    if (actual.double() - exact).abs().max() <= COARSE * exact.abs().max():
        return "too coarse: products or sums in less precision than the dtype has (TF32, bf16 sums, a fast exp)"
    return trial.suspect


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
