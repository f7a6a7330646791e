"""Define what a gate learns: the pooled attention map as target, and the losses of recipes v1 and v2."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

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
    if recipe == "v1":
        return LOSS_SCALE * F.mse_loss(scores.softmax(-1), target.float())
    skip = scores.shape[-2] // 4
    finite = scores.masked_fill(scores == -math.inf, -1e20)  # 0 * inf would be NaN inside KL
    divergence = F.kl_div(finite.log_softmax(-1)[..., skip:, :], target.float()[..., skip:, :], reduction="none")
    return LOSS_SCALE * divergence.mean()
