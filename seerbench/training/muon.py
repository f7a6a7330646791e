"""Define Muon, an optimizer for weight matrices whose updates are orthogonalized (Keller Jordan, 2024).

Pre-training and fine-tuning use it for the matrices inside the layers (optimizers.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Update matrices by their momentum, orthogonalized with Newton-Schulz iterations.

    The update is that of torch.optim.Muon with adjust_lr_fn="match_rms_adamw", which iterates in bfloat16, matrix
    by matrix. CPUs emulate bfloat16, so a step of the small model takes torch's optimizer 0.6 s. Here the matrices
    of one shape are iterated together, in float32 on a CPU.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        """Prepare the optimizer.

        Args:
            params: matrices.
            lr: in AdamW's units, so an update has a root mean square of 0.2 * lr.
            weight_decay: decoupled, as AdamW's.
            momentum: weight of the running mean of gradients.
        """
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
                # Nesterov's momentum looks one step ahead of the gradient.
                updates = torch.stack(torch._foreach_lerp(grads, buffers, group["momentum"]))
                updates = orthogonalized(updates)
                scale = group["lr"] * 0.2 * math.sqrt(max(shape))
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, list(updates.to(params[0].dtype)), alpha=-scale)


def orthogonalized(updates: Tensor) -> Tensor:
    """Return the nearest orthogonal matrices, approximately, by five Newton-Schulz steps.

    The coefficients of the quintic are those of Keller Jordan and of torch.optim.Muon.

    Args:
        updates: float32 [matrices, rows, columns].

    Returns:
        float32 of that shape; a GPU iterates in bfloat16.
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
