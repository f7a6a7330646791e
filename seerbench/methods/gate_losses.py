"""Define what a gate learns: the attention map, pooled by block, as target, and the losses of recipes v1 and v2."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from seerbench.core.block_mask import block_count
from seerbench.core.reference import grouped_products

# Factor on every loss: the default of gate_loss_scale in the authors' code.
LOSS_SCALE = 10.0


def gate_target(pooled_map: Tensor, rows: int = 1) -> Tensor:
    """Normalise the rows of a pooled attention map to sum 1.

    Args:
        pooled_map: maximum of the attention map in each block, [B, Hq, n, n], 0 above the diagonal.
        rows: number of the map's rows that are pooled to one row of the target.

    Returns:
        The target [B, Hq, ceil(n / rows), n], in fp32 or the map's dtype if that is wider.
    """
    if rows > 1:
        padded = F.pad(pooled_map, (0, 0, 0, -pooled_map.shape[2] % rows))
        pooled_map = padded.unflatten(2, (-1, rows)).amax(3)
    pooled_map = pooled_map.to(torch.promote_types(pooled_map.dtype, torch.float32))
    return pooled_map / pooled_map.sum(-1, keepdim=True).clamp_min(torch.finfo(pooled_map.dtype).tiny)


def token_target(q: Tensor, k: Tensor, first: int, block: int) -> Tensor:
    """Compute the target of single queries: the maximum of the attention weights per key block, with row sums of 1.

    The weights of a query are divided by their own sum anyway, so the target is the softmax of each block's largest
    logit. Memory is that of the map of these queries, [B, Hq, R, first + R] in fp32.

    Args:
        q: queries first, first + 1, ..., [B, Hq, R, D] after RoPE.
        k: all keys [B, Hk, N, D] after RoPE.
        first: position of the first query.
        block: keys per block.

    Returns:
        fp32 (or wider, as q) [B, Hq, R, ceil(N / block)]; 0 in blocks after the query.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    rows, blocks = q.shape[2], block_count(k.shape[2], block)
    seen = min(block_count(first + rows, block) * block, k.shape[2])  # Whole blocks, the last of N may be partial.
    logits = grouped_products(q.to(dtype) * q.shape[-1] ** -0.5, k[:, :, :seen].to(dtype))
    # Only the keys from `first` on can be in the future of a query.
    positions = torch.arange(first, seen, device=q.device)
    logits[..., first:].masked_fill_(positions > positions[:rows, None], -math.inf)
    logits = F.pad(logits, (0, -seen % block), value=-math.inf)
    best = logits.unflatten(-1, (-1, block)).amax(-1)
    return F.pad(best.softmax(-1), (0, blocks - best.shape[-1]))


def first_row(rows: int, recipe: str) -> int:
    """Return the first of `rows` rows that a loss reads: recipe v2 leaves out a quarter of them."""
    return 0 if recipe == "v1" else rows // 4


def gate_loss(scores: Tensor, target: Tensor, recipe: str) -> Tensor:
    """Return the loss of one layer's gate, a scalar with the factor LOSS_SCALE.

    Recipe v1 is the mean squared error between softmax(scores) and the target over the full n x n square, zeros
    above the diagonal included. Recipe v2 is KL(target, gate), its mean over all elements (KLDivLoss's default)
    without the first quarter of the rows.

    Args:
        scores: fp32 [B, Hq, n, n], -inf above the diagonal.
        target: of that shape (`gate_target`).
        recipe: "v1" or "v2".
    """
    first = first_row(scores.shape[-2], recipe)
    return row_loss(scores[..., first:, :], target[..., first:, :], recipe)


def row_loss(scores: Tensor, target: Tensor, recipe: str) -> Tensor:
    """Return the mean loss of the given rows, a scalar; arguments and losses are those of `gate_loss`."""
    if recipe == "v1":
        return LOSS_SCALE * F.mse_loss(scores.softmax(-1), target.float())
    finite = scores.masked_fill(scores == -math.inf, -1e20)  # 0 * inf would be NaN inside KL
    return LOSS_SCALE * F.kl_div(finite.log_softmax(-1), target.float(), reduction="none").mean()
