"""Compute the negative log-likelihood of a window of text under a model.

measure/perplexity.py measures with `window_nll`, and search/moa.py compares plans by it.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from seerbench.models.self_check import check_model


def window_nll(model: Any, window: Tensor, chunk: int = 16_384, scored: int | None = None) -> float:
    """Return the mean negative log-likelihood of the tokens of a window, in nats per token.

    Args:
        model: a causal language model of transformers.
        window: int64 [N]; the first token is not predicted.
        chunk: positions whose logits exist at a time, in float32.
        scored: average over only this many tokens at the end; None averages over all N - 1 that are predicted.

    Raises:
        ModelError: the model is not supported, e.g. because it scales its logits.
    """
    check_model(model)
    hidden = model.model(window[None, :-1], use_cache=False).last_hidden_state[0]
    targets = window[1:]
    if scored is not None:
        hidden, targets = hidden[-scored:], targets[-scored:]
    total = 0.0
    for rows, labels in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        total += F.cross_entropy(model.lm_head(rows).float(), labels, reduction="sum").item()
    return total / len(targets)
