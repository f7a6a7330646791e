"""optimizers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from seerbench.training.jobs import Optimizer
from seerbench.training.muon import Muon


def optimizers(model: nn.Module, settings: Optimizer) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the layers, AdamW for embeddings, norms and all else that is trainable.

    Without a learning rate for Muon, AdamW trains the matrices too.
    """
    matrices, embeddings, others = [], [], []
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        if "embed" in name:
            embeddings.append(param)
        elif param.ndim == 2 and "lm_head" not in name and settings.muon_lr is not None:
            matrices.append(param)
        else:
            others.append(param)
    decay = settings.weight_decay
    groups = [
        {"params": embeddings, "lr": settings.embed_lr},
        {"params": others, "lr": settings.adam_lr},
    ]
    adam = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        betas=settings.betas,
        weight_decay=decay,
        foreach=True,
    )
    return [adam, Muon(matrices, lr=settings.muon_lr, weight_decay=decay)] if matrices else [adam]


def lr_at(step: int, steps: int, *, warmup: int, decay_share: float) -> float:
    """The learning rate's factor at a step: linear warm-up, constant, linear decay over the last share."""
    decay = max(1, round(steps * decay_share))
    return min(1.0, (step + 1) / max(1, warmup), (steps - step) / decay)


def set_lr(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> float:
    """Scale every optimizer's first learning rate by `factor`; returns that of the last optimizer."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = group["initial_lr"] * factor
    return optimizers[-1].param_groups[0]["lr"]
