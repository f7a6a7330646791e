"""Check a kernel for decoding before it is timed: run its trials and find out what is wrong, where and why.

A kernel is a function (q, k, v, lists: CacheLists) -> output. The reference is attention by definition in float64
over the tokens that the lists read. As in check.py, memory that Python code allocates meanwhile is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from seerbench.compare.check import output_of, ranges
from seerbench.compare.decode_trials import decode_inputs, decode_trials
from seerbench.compare.diagnose import PRECISION_ERROR, Guess, attention_over, heads_modulo
from seerbench.compare.trials import Finding, Trial
from seerbench.core.problem import AttentionProblem
from seerbench.core.reference import reference_attention
from seerbench.core.tolerance import error_and_budget
from seerbench.kernels.decode.lists import CacheLists

DecodeKernel = Callable[[Tensor, Tensor, Tensor, CacheLists], Tensor]


def check_decode_kernel(
    kernel: DecodeKernel, problem: AttentionProblem, seed: int = 0
) -> Iterator[tuple[Trial, Finding | None]]:
    """Run every trial of a kernel for decoding; yield each with its finding, or with None if the output is right.

    An error that the kernel raises comes through, with a note that names the trial.

    Args:
        kernel: (q, k, v, lists) -> output.
        problem: gives heads, head_dim, block size, dtype and device.
        seed: seed of inputs and lists.
    """
    for number, trial in enumerate(decode_trials(problem)):
        q, k, v, lists = decode_inputs(trial, torch.Generator().manual_seed(seed * 1_000 + number))
        yield trial, judge_decoding(kernel, trial, q, k, v, lists)


def judge_decoding(
    kernel: DecodeKernel, trial: Trial, q: Tensor, k: Tensor, v: Tensor, lists: CacheLists
) -> Finding | None:
    """Run a kernel on one trial; return what is wrong with its output, or None.

    Args:
        kernel: (q, k, v, lists) -> output.
        trial: the trial.
        q: its queries [B, Hq, 1, D].
        k: its keys [B, Hk, N, D].
        v: its values [B, Hk, N, D].
        lists: the blocks that are read.
    """
    actual = output_of(kernel, trial, q, k, v, lists)
    if isinstance(actual, Finding):
        return actual
    read = lists.to_tokens(k.shape[2])
    # What is not read may be NaN, of which the reference would make more.
    k, v = (x.masked_fill(~read[..., None], 0.0) if trial.views else x for x in (k, v))
    pairs = _per_query_head(read, q)
    exact, rounded = (reference_attention(q, k, v, pairs, dtype)[0] for dtype in (torch.float64, q.dtype))
    error, budget = error_and_budget(actual, exact, rounded)
    if error <= budget:
        return None
    guess, recognised = _diagnose(trial, q, k, v, lists, actual, exact, budget)
    return Finding(trial, error, budget, _where(actual, exact, budget), guess, recognised)


def _per_query_head(read: Tensor, q: Tensor) -> Tensor:
    """Return tokens read per key/value head, bool [B, Hk, N], as pairs of each query head, bool [B, Hq, 1, N]."""
    return read.repeat_interleave(q.shape[1] // read.shape[1], 1)[:, :, None]


def _where(actual: Tensor, exact: Tensor, budget: float) -> str:
    """Return in words which sequences and heads are wrong, and the worst element."""
    error = (actual.double() - exact).abs()
    batch, head, _, _ = (~(error <= budget)).nonzero(as_tuple=True)
    worst = [int(i) for i in torch.unravel_index(error.nan_to_num(torch.inf, torch.inf).argmax(), error.shape)]
    sequences = batch.unique()
    return (
        f"{len(sequences)} of {error.shape[0]} sequences, first {int(sequences[0])}; head {ranges(head)} of "
        f"{error.shape[1]}\n"
        f"           worst at [{', '.join(map(str, worst))}]: "
        f"{actual[tuple(worst)].item():.4g}, should be {exact[tuple(worst)].item():.4g}"
    )


class _Mistake(NamedTuple):
    """A common mistake: what it is, and the float64 output [B, Hq, 1, D] that it gives."""

    text: str
    output: Callable[[Tensor, Tensor, Tensor, CacheLists], Tensor]


def _over(q: Tensor, k: Tensor, v: Tensor, lists: CacheLists) -> Tensor:
    return attention_over(q, k, v, _per_query_head(lists.to_tokens(k.shape[2]), q))


def _ignores_lists(q: Tensor, k: Tensor, v: Tensor, lists: CacheLists) -> Tensor:
    places = torch.arange(k.shape[2], device=k.device)
    own = (places >= lists.first[:, None]) & (places < lists.end[:, None])
    return attention_over(q, k, v, own[:, None, None])


def _wrong_kv_head(q: Tensor, k: Tensor, v: Tensor, lists: CacheLists) -> Tensor:
    heads = q.shape[1]
    read = heads_modulo(lists.to_tokens(k.shape[2])[..., None], heads)[..., 0]
    return attention_over(q, heads_modulo(k, heads), heads_modulo(v, heads), read[:, :, None])


def _lists_of_head_0(q: Tensor, k: Tensor, v: Tensor, lists: CacheLists) -> Tensor:
    first = (x[:, :1].expand_as(x) for x in (lists.counts, lists.blocks))
    return _over(q, k, v, CacheLists(*first, lists.first, lists.end, lists.block))


def _lists_of_sequence_0(q: Tensor, k: Tensor, v: Tensor, lists: CacheLists) -> Tensor:
    first = (x[:1].expand_as(x) for x in (lists.counts, lists.blocks))
    return _over(q, k, v, CacheLists(*first, lists.first, lists.end, lists.block))


def _unscaled(q: Tensor, k: Tensor, v: Tensor, lists: CacheLists) -> Tensor:
    return attention_over(q, k, v, _per_query_head(lists.to_tokens(k.shape[2]), q), scale=1.0)


def _reads_behind_counts(q: Tensor, k: Tensor, v: Tensor, lists: CacheLists) -> Tensor:
    return _over(q, k, v, replace(lists, counts=torch.full_like(lists.counts, lists.blocks.shape[-1])))


def _drops_last(q: Tensor, k: Tensor, v: Tensor, lists: CacheLists) -> Tensor:
    return _over(q, k, v, replace(lists, counts=(lists.counts - 1).clamp(min=0)))


def _counts_from_place_0(q: Tensor, k: Tensor, v: Tensor, lists: CacheLists) -> Tensor:
    return _over(q, k, v, replace(lists, first=torch.zeros_like(lists.first)))


MISTAKES = (
    _Mistake("ignores the lists: the output is that of dense attention over the cache", _ignores_lists),
    _Mistake(
        "wrong key/value head (GQA): query head h reads h % Hk; it should read h // (Hq / Hk)", _wrong_kv_head
    ),
    _Mistake("takes head 0's list for every key/value head", _lists_of_head_0),
    _Mistake("takes sequence 0's lists for the whole batch", _lists_of_sequence_0),
    _Mistake("forgets to scale the scores by 1 / sqrt(head_dim)", _unscaled),
    _Mistake("reads the entries behind counts (zeros, so block 0): stop after counts", _reads_behind_counts),
    _Mistake("drops the last block of each list", _drops_last),
    _Mistake("counts blocks from the cache's first place; a sequence's begin at `first`", _counts_from_place_0),
)


def _diagnose(
    trial: Trial,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: CacheLists,
    actual: Tensor,
    exact: Tensor,
    budget: float,
) -> Guess:
    """Guess why an output is wrong; k and v hold numbers everywhere."""
    empty = (lists.counts == 0).repeat_interleave(q.shape[1] // k.shape[1], 1)
    if not actual.isfinite().all():
        lost = (~actual.isfinite()).any(-1)[..., 0]
        if empty.any() and torch.equal(lost, empty):
            return Guess(
                "NaN on an empty list: 0 / 0 in its softmax, or an output never written; such a one gives 0"
            )
        if trial.views or trial.scale > 1:
            return Guess(trial.suspect)
        return Guess("NaN: reads memory that it did not write, or leaves part of the output unwritten")
    for mistake in MISTAKES:
        other = mistake.output(q, k, v, lists)
        near = 4 * budget + 16 * torch.finfo(q.dtype).eps * other.abs().max()
        # A mistake whose output this trial cannot tell from the right one explains nothing.
        if (other - exact).abs().max() > 2 * near and (actual.double() - other).abs().max() <= near:
            return Guess(mistake.text, recognised=True)
    if (actual.double() - exact).abs().max() <= PRECISION_ERROR * exact.abs().max():
        return Guess(
            "too coarse: products or sums in less precision than the dtype has (TF32, bf16 sums, a fast exp)"
        )
    return Guess(trial.suspect)
