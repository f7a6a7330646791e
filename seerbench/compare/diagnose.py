"""diagnose."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seerbench.compare.trials import Trial
from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.reference import repeat_kv

COARSE = 0.02  # an error below this share of the largest output is one of precision, not of logic


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
