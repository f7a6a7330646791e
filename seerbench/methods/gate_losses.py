"""gate_losses."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOSS_SCALE = 10.0  # gate_loss_scale, the default of the authors' code


def gate_target(pooled_map: Tensor, rows: int = 1) -> Tensor:
    """Max-pooled attention map [B, Hq, n, n] (zero above the diagonal) -> fp32 (or wider), rows of sum 1.

    rows: query blocks of the map to one of the target, [B, Hq, ceil(n / rows), n].
    """
    if rows > 1:
        padded = F.pad(pooled_map, (0, 0, 0, -pooled_map.shape[2] % rows))
        pooled_map = padded.unflatten(2, (-1, rows)).amax(3)
    pooled_map = pooled_map.to(torch.promote_types(pooled_map.dtype, torch.float32))
    return pooled_map / pooled_map.sum(-1, keepdim=True).clamp_min(torch.finfo(pooled_map.dtype).tiny)


def gate_loss(scores: Tensor, target: Tensor, recipe: str) -> Tensor:
    """Scalar loss of one layer, already times 10.

    v1: mean squared error of softmax(scores) over the full n x n square (zeros above the diagonal count).
    v2: KL(target, gate), element-wise mean as in KLDivLoss's default, without the first quarter of rows.
    """
    if recipe == "v1":
        return LOSS_SCALE * F.mse_loss(scores.softmax(-1), target.float())
    skip = scores.shape[-2] // 4
    finite = scores.masked_fill(scores == -math.inf, -1e20)  # 0 * inf would be NaN inside KL
    divergence = F.kl_div(finite.log_softmax(-1)[..., skip:, :], target.float()[..., skip:, :], reduction="none")
    return LOSS_SCALE * divergence.mean()
