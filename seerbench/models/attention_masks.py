"""Honour the attention masks of transformers in a prefill: padding, packed documents, sliding windows.

A plan must be made from the tokens that its queries may see. With padding or packed documents, the visible pairs
are a few causal squares on the diagonal, one per sequence: each is a prefill of its own, and the method plans it
alone. Any other mask, such as a sliding window's, is for dense attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from seerbench.core.problem import LayerContext
from seerbench.errors import Refused
from seerbench.methods.protocol import Method, realised_sparsity

# An additive mask hides a key by this or less. It is the lowest number of float16; no score is as large.
HIDDEN = -65504.0


def visible_pairs(mask: Any, tokens: int) -> Tensor | None:
    """Return the pairs of query and key that a prefill's mask allows, or None if they are all causal pairs.

    Args:
        mask: None, or [B or 1, H or 1, N or 1, keys], bool or additive (0 and the lowest number). Keys after the
            first N are unused room of a static cache.
        tokens: N.

    Returns:
        bool [B or 1, H or 1, N, N].

    Raises:
        Refused: a mask of another kind, or one that adds other numbers to the scores.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        raise Refused("SeerBench takes attention masks [B, N], or bool [B, 1, N, N], and no other kind")
    mask = mask[..., :tokens].expand(-1, -1, tokens, tokens)
    if mask.is_floating_point():
        hidden = mask <= HIDDEN
        if not bool((hidden | (mask == 0)).all()):
            raise Refused(
                "the attention mask adds numbers other than 0 and the lowest one to the scores, e.g. a bias; "
                "SeerBench takes masks that show or hide a key"
            )
        mask = ~hidden
    elif mask.dtype != torch.bool:
        raise Refused(f"an attention mask of four dimensions must be bool or floating-point, not {mask.dtype}")
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=mask.device).tril()
    return None if bool((mask == causal).all()) else mask


def planned_pairs(
    method: Method, q: Tensor, k: Tensor, layer: LayerContext, visible: Tensor
) -> tuple[Tensor, float | None]:
    """Plan every sequence of a masked batch by itself.

    Args:
        method: it plans; attention over the returned pairs replaces its `attend`.
        q: queries [B, Hq, N, D] after RoPE.
        k: keys [B, Hk, N, D] after RoPE.
        layer: as in `Method.plan`.
        visible: from `visible_pairs`.

    Returns:
        The pairs that are visible and planned, bool [B or 1, Hq or 1, N, N], and the realised sparsity, which is
        weighted by the causal pairs of each sequence; None for a method that plans nothing.

    Raises:
        Refused: the method cannot run under this mask.
    """
    if method.corrects_skipped:
        raise Refused(
            f"{method.name} takes no attention mask (padding, packed documents, a sliding window shorter than the "
            "prompt), since it computes more than attention over its blocks"
        )
    sequences = causal_sequences(visible.expand(q.shape[0], -1, -1, -1))
    if sequences is None:
        if method.plan(q, k, layer) is None:
            return visible, None
        raise Refused(
            f"{method.name} cannot plan under this attention mask, which hides some earlier tokens from later ones "
            "of the same sequence (a sliding window shorter than the prompt, padding in the middle) or shows later "
            "ones; dense attention can, and so can every method on padding at the sides and packed documents"
        )
    pairs = torch.zeros(*q.shape[:3], q.shape[2], dtype=torch.bool, device=q.device)
    skipped = total = 0.0
    for row, start, end in sequences:
        part = slice(row, row + 1), slice(None), slice(start, end)
        unrotated = _part(layer.q_unrotated, part), _part(layer.k_unrotated, part)
        plan = method.plan(q[part], k[part], LayerContext(layer.index, *unrotated, layer.rope))
        if plan is None:
            return visible, None
        planned = plan.to_token_mask()
        if planned is None:
            raise Refused(f"{method.name} has a plan of its own and cannot honour an attention mask")
        pairs[row, :, start:end, start:end] = planned[0]
        weight = (end - start) * (end - start + 1) / 2
        skipped, total = skipped + weight * realised_sparsity(plan), total + weight
    return pairs, skipped / max(total, 1.0)  # 0 in a batch of padding alone


def causal_sequences(visible: Tensor) -> list[tuple[int, int, int]] | None:
    """Split a masked batch into sequences, each with plain causal attention to itself and to nothing else.

    Args:
        visible: bool [B, 1, N, N], where more than one head means that the heads differ.

    Returns:
        (row of the batch, first token, end) of each sequence; None if the mask is of another form. A token that
        does not see itself is padding and in no sequence.
    """
    if visible.shape[1] != 1:
        return None
    visible = visible[:, 0]
    real = visible.diagonal(dim1=-2, dim2=-1)  # [B, N]
    first = visible.to(torch.uint8).argmax(-1)  # [B, N], the first key that each query sees
    sequences: list[tuple[int, int, int]] = []
    squares = torch.zeros_like(visible)
    for row in range(len(visible)):
        starts, lengths = torch.unique_consecutive(first[row][real[row]], return_counts=True)
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            sequences.append((row, start, start + length))
            squares[row, start : start + length, start : start + length] = True
    same = torch.equal(squares.tril()[real], visible[real])
    return sequences if same else None


def first_tokens(visible: Tensor | None, batch: int, tokens: int) -> list[int]:
    """Return the place of each sequence's first token in a prompt that may have padding on the left.

    Args:
        visible: from `visible_pairs`.
        batch: B.
        tokens: N.

    Raises:
        Refused: a row of the batch has no sequence or several, or one that does not end with the last token.
    """
    if visible is None:
        return [0] * batch
    sequences = causal_sequences(visible.expand(batch, -1, -1, -1)) or []
    if [(row, end) for row, _, end in sequences] != [(row, tokens) for row in range(batch)]:
        raise Refused("sparse decoding takes one sequence per row of a batch, with padding on the left only")
    return [start for _, start, _ in sequences]


def require_all_visible(mask: Tensor | None, first: Sequence[int], tokens: int) -> None:
    """Raise Refused unless a new token sees every token of its sequence. It waits for a GPU if there is a mask.

    Args:
        mask: None, or [B or 1, 1, 1, keys], bool or additive, where keys after `tokens` are unused room.
        first: place of each sequence's first token.
        tokens: tokens in the cache with the new one.
    """
    if mask is None:
        hidden = any(first)
    else:
        shown = mask if mask.dtype == torch.bool else mask > HIDDEN
        places = torch.arange(mask.shape[-1], device=mask.device)
        wanted = (places >= torch.tensor(first, device=mask.device)[:, None]) & (places < tokens)
        hidden = not bool((shown == wanted[:, None, None]).all())
    if hidden:
        raise Refused(
            "sparse decoding takes no attention mask that hides a token of the text (a sliding window, packed "
            "documents) or shows padding"
        )


def _part(tensor: Tensor | None, part: tuple[slice, ...]) -> Tensor | None:
    return None if tensor is None else tensor[part]
