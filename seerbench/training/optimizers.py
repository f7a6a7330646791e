"""Make the optimizers of a training, follow its learning-rate schedule, and take a step.

Pre-training and fine-tuning use Muon and AdamW on one schedule, distillation uses AdamW on another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from seerbench.training.jobs import Optimizer
from seerbench.training.muon import Muon

# Largest norm of the gradient of a gate set: the default of Hugging Face's Trainer, which the authors' scripts
# keep.
GATE_CLIP = 1.0


def optimizers(model: nn.Module, settings: Optimizer) -> list[torch.optim.Optimizer]:
    """Return AdamW for embeddings, norms and other vectors, and Muon for the matrices inside the layers.

    Without a learning rate for Muon, the list holds AdamW alone, which then trains the matrices as well.
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
    if settings.muon_lr is None or not matrices:
        return [adam]
    return [adam, Muon(matrices, lr=settings.muon_lr, weight_decay=decay)]


def lr_at(step: int, steps: int, *, warmup: int, decay_share: float) -> float:
    """Return the factor of the learning rate at a step: linear warm-up, constant, then linear decay.

    Args:
        step: from 0 to steps - 1.
        steps: of the training.
        warmup: steps of the warm-up.
        decay_share: share of the steps over which the factor decays.
    """
    decay = max(1, round(steps * decay_share))
    return min(1.0, (step + 1) / max(1, warmup), (steps - step) / decay)


def cosine_at(step: int, steps: int, warmup: int) -> float:
    """Return the factor of the learning rate at `step` of `steps`: linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_lr(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> float:
    """Set every learning rate to `factor` times its initial value; return that of the last optimizer."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = group["initial_lr"] * factor
    return optimizers[-1].param_groups[0]["lr"]


def update_weights(
    optimizers: Iterable[torch.optim.Optimizer], clipped: Iterable[tuple[Iterable[Tensor], float]]
) -> None:
    """Clip the gradients, take one step with every optimizer, and drop the gradients.

    Args:
        optimizers: of all trained weights.
        clipped: groups of weights, each with the largest norm that the gradient of the group may have.
    """
    for weights, max_norm in clipped:
        nn.utils.clip_grad_norm_(weights, max_norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
