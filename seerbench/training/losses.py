"""Compute the language-model loss of every token without holding all logits in memory.

Pre-training and fine-tuning use it; the losses of gates are in methods/gate_losses.py.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from seerbench.training.fsdp import all_gather_weight


def next_token_losses(model: Any, tokens: Tensor, chunk: int, device: str) -> Tensor:
    """Return the cross-entropy of every token of a window but the first, given the tokens before it.

    On a GPU the forward pass runs in bfloat16 by autocast.

    Args:
        model: a causal language model of transformers, whose output embedding may be sharded.
        tokens: int64 [B, N].
        chunk: tokens whose logits exist at a time.
        device: the model's.

    Returns:
        float32 [B, N - 1], in nats.
    """
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device != "cpu"):
        hidden = model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        weight = all_gather_weight(model.lm_head.weight)
        losses = token_losses(hidden.flatten(0, 1), weight, tokens[:, 1:].flatten(), chunk)
    return losses.view(len(tokens), -1)


def token_losses(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Tensor:
    """Return the cross-entropy of every token without computing all logits at once.

    Args:
        hidden: [tokens, hidden], the last hidden states.
        weight: [vocab, hidden], the output embedding.
        labels: int64 [tokens].
        chunk: tokens whose logits exist at a time. If there are several chunks, the backward pass computes their
            logits again.

    Returns:
        float32 [tokens], in nats.
    """

    def losses(rows: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(rows, weight).float(), targets, reduction="none")

    if len(hidden) <= chunk:
        return losses(hidden, labels)
    chunks = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    return torch.cat([checkpoint(losses, rows, targets, use_reentrant=False) for rows, targets in chunks])
