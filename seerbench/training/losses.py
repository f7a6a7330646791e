"""losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def token_losses(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Tensor:
    """Cross-entropy of every token without the full logits.

    Args:
        hidden: [tokens, hidden], last hidden states.
        weight: [vocab, hidden], the output embedding.
        labels: [tokens], int64.
        chunk: rows whose logits exist at a time; recomputed in backward where there are several chunks.

    Returns:
        [tokens], float32.
    """

    def losses(rows: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(rows, weight).float(), wanted, reduction="none")

    if len(hidden) <= chunk:
        return losses(hidden, labels)
    parts = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    return torch.cat([checkpoint(losses, rows, wanted, use_reentrant=False) for rows, wanted in parts])
