"""Guess why an output is wrong, by comparing it with the outputs of common mistakes.

A kernel that ignores the mask gives dense attention exactly, one that reads another head's lists gives that head's
attention, and so on (`MISTAKES`). If no mistake fits, the place of the error gives a hint. check.py calls
`diagnose`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from seerbench.compare.trials import Trial
from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.reference import repeat_kv

# An error below this share of the largest output is one of precision, not of logic.
PRECISION_ERROR = 0.02


class Guess(NamedTuple):
    """A likely reason, and whether the output is exactly what a common mistake gives."""

    text: str
    recognised: bool = False


class Mistake(NamedTuple):
    """A common mistake: what it is, and the float64 output [B, Hq, N, D] that it gives for q, k, v and a mask."""

    text: str
    output: Callable[[Tensor, Tensor, Tensor, BlockMask], Tensor]


def attention_over(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float | None = None) -> Tensor:
    """Return float64 attention over the pairs `seen` [..., N, N]; rows that see nothing give 0.

    Args:
        q: queries [B, Hq, N, D].
        k: keys [B, Hk, N, D].
        v: values [B, Hk, N, D].
        seen: which key each query sees, broadcast to [B, Hq, N, N].
        scale: factor on the scores; 1 / sqrt(D) by default.
    """
    q, k, v = q.double(), repeat_kv(k, q.shape[1]).double(), repeat_kv(v, q.shape[1]).double()
    scores = (q @ k.transpose(-1, -2)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0) @ v


def token_mask(kept: Tensor, mask: BlockMask, causal: bool = True) -> Tensor:
    """Return bool [B, Hq, N, N] for kept blocks [B, Hq, nq, nk]; `mask` gives tokens and block sizes."""
    n = mask.tokens
    seen = kept.repeat_interleave(mask.block_q, -2)[..., :n, :].repeat_interleave(mask.block_k, -1)[..., :n]
    return seen.tril() if causal else seen


def without_last(mask: BlockMask) -> Tensor:
    """Return the kept blocks [B, Hq, nq, nk] without the last one of each row."""
    kept = mask.to_dense()
    columns = torch.arange(kept.shape[-1], device=kept.device)
    last = columns.where(kept, -1).amax(-1, keepdim=True)
    return kept & (columns != last)


def with_padding(mask: BlockMask) -> Tensor:
    """Return the kept blocks [B, Hq, nq, nk] and block 0 where the list of a row has padding, which is zeros."""
    kept = mask.to_dense()
    kept[..., 0] |= mask.kv_num_blocks < mask.kv_indices.shape[-1]
    return kept


def with_diagonal(mask: BlockMask) -> Tensor:
    """Return the kept blocks [B, Hq, nq, nk] and every block that the diagonal crosses."""
    device = mask.kv_indices.device
    rows = torch.arange(mask.kv_num_blocks.shape[-1], device=device) * mask.block_q
    columns = torch.arange(block_count(mask.tokens, mask.block_k), device=device) * mask.block_k
    crossed = (columns < (rows + mask.block_q)[:, None]) & (columns + mask.block_k > rows[:, None])
    return mask.to_dense() | crossed


def heads_modulo(x: Tensor, heads: int) -> Tensor:
    """Return [B, heads, N, D] in which head h is key/value head h % Hk of x [B, Hk, N, D]."""
    return x[:, torch.arange(heads, device=x.device) % x.shape[1]]


def _ignores_mask(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    return attention_over(q, k, v, token_mask(torch.ones_like(mask.to_dense()), mask))


def _ignores_mask_and_causality(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    return attention_over(q, k, v, token_mask(torch.ones_like(mask.to_dense()), mask, causal=False))


def _not_causal(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    return attention_over(q, k, v, token_mask(mask.to_dense(), mask, causal=False))


def _wrong_kv_head(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    heads = q.shape[1]
    return attention_over(q, heads_modulo(k, heads), heads_modulo(v, heads), mask.to_token_mask())


def _lists_of_head_0(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    return attention_over(q, k, v, mask.to_token_mask()[:, :1].expand(-1, q.shape[1], -1, -1))


def _lists_of_batch_0(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    return attention_over(q, k, v, mask.to_token_mask()[:1])


def _unscaled(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    return attention_over(q, k, v, mask.to_token_mask(), scale=1.0)


def _reads_padding(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    return attention_over(q, k, v, token_mask(with_padding(mask), mask))


def _drops_last(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    return attention_over(q, k, v, token_mask(without_last(mask), mask))


def _adds_diagonal(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    return attention_over(q, k, v, token_mask(with_diagonal(mask), mask))


MISTAKES = (
    Mistake("ignores the mask: the output is that of dense causal attention", _ignores_mask),
    Mistake("ignores the mask, and is not causal", _ignores_mask_and_causality),
    Mistake("not causal inside the diagonal block", _not_causal),
    Mistake("wrong key/value head (GQA): query head h reads h % Hk; it should read h // (Hq / Hk)", _wrong_kv_head),
    Mistake("takes head 0's lists for every head", _lists_of_head_0),
    Mistake("takes batch entry 0's lists for the whole batch", _lists_of_batch_0),
    Mistake("forgets to scale the scores by 1 / sqrt(head_dim)", _unscaled),
    Mistake("reads the padding of kv_indices (zeros, so block 0): stop after kv_num_blocks", _reads_padding),
    Mistake("drops the last block of each list", _drops_last),
    Mistake("computes the diagonal block where it is not listed", _adds_diagonal),
)


def diagnose(
    trial: Trial,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask,
    actual: Tensor,
    exact: Tensor,
    budget: float,
) -> Guess:
    """Guess why an output is wrong.

    Args:
        trial: the trial that failed.
        q: its queries [B, Hq, N, D].
        k: its keys [B, Hk, N, D].
        v: its values [B, Hk, N, D].
        mask: its block mask.
        actual: the wrong output [B, Hq, N, D].
        exact: the float64 reference [B, Hq, N, D].
        budget: the error that rounding explains.
    """
    wrong_rows = (~((actual.double() - exact).abs() <= budget)).any(-1)  # [B, Hq, N]
    empty = ~mask.to_token_mask().any(-1)
    tail = torch.arange(mask.tokens, device=q.device) >= mask.tokens // mask.block_q * mask.block_q
    if not actual.isfinite().all():
        return _diagnose_nan(trial, actual, wrong_rows, empty, tail)
    for mistake in MISTAKES:
        other = mistake.output(q, k, v, mask)
        near = 4 * budget + 16 * torch.finfo(q.dtype).eps * other.abs().max()
        # A mistake whose output this trial cannot tell from the right one explains nothing.
        if (other - exact).abs().max() > 2 * near and (actual.double() - other).abs().max() <= near:
            return Guess(mistake.text, recognised=True)
    if not wrong_rows[~empty].any():
        return Guess("wrong on a row without a block: its output is 0, not that of any other row or mask")
    if tail.any() and not wrong_rows[..., ~tail].any():
        return Guess("wrong in the tail block: its last rows, when the length is no multiple of the block")
    if (actual.double() - exact).abs().max() <= PRECISION_ERROR * exact.abs().max():
        return Guess(
            "too coarse: products or sums in less precision than the dtype has (TF32, bf16 sums, a fast exp)"
        )
    return Guess(trial.suspect)


def _diagnose_nan(trial: Trial, actual: Tensor, wrong_rows: Tensor, empty: Tensor, tail: Tensor) -> Guess:
    """Guess why an output is not finite; `empty` marks rows without a block, `tail` the partial last block."""
    lost = (~actual.isfinite()).any(-1)
    if empty.any() and torch.equal(lost, empty.expand_as(lost)):
        return Guess(
            "NaN on a row without a block: 0 / 0 in its softmax, or an output never written; such a row gives 0"
        )
    if trial.scale > 1:
        return Guess(trial.suspect)
    if not wrong_rows[..., ~tail].any():
        return Guess("NaN in the tail block: reads past the last token, or leaves its rows unwritten")
    if trial.views:
        return Guess("NaN from beyond the last token of a view: assumes contiguous inputs, or reads past the end")
    return Guess("NaN: reads memory that it did not write, or leaves part of the output unwritten")
