"""muon."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Muon (momentum, then orthogonalised updates) for matrices, Newton-Schulz in float32.

    The same update as torch.optim.Muon with adjust_lr_fn="match_rms_adamw". That one iterates in bfloat16,
    matrix by matrix; CPUs emulate bfloat16, and a step of our small model took 0.6 s there. Here matrices of
    one shape go through the iteration together, in float32.

    Args:
        lr: in AdamW's units: an update has root mean square 0.2 * lr.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for param in group["params"]:
                if param.grad is not None:
                    shapes.setdefault(param.shape, []).append(param)
            for shape, params in shapes.items():
                for param in params:
                    if not self.state[param]:
                        self.state[param]["momentum_buffer"] = torch.zeros_like(param)
                buffers = [self.state[param]["momentum_buffer"] for param in params]
                grads = [param.grad for param in params]
                torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
                # Nesterov: look one momentum step ahead of the gradient
                updates = torch.stack(torch._foreach_lerp(grads, buffers, group["momentum"]))
                updates = orthogonalised(updates)
                scale = group["lr"] * 0.2 * math.sqrt(max(shape))
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, list(updates.to(params[0].dtype)), alpha=-scale)


def orthogonalised(updates: Tensor) -> Tensor:
    """Five Newton-Schulz steps towards the nearest orthogonal matrices: [matrices, rows, columns].

    The quintic's coefficients are Keller Jordan's (Muon, 2024), as in torch.optim.Muon.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = updates.shape[1] > updates.shape[2]
    x = updates.mT if tall else updates
    x = x.to(torch.bfloat16 if x.is_cuda else torch.float32)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(a * x, torch.baddbmm(b * gram, gram, gram, beta=1, alpha=c), x)
    return (x.mT if tall else x).float()
