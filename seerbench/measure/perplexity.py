"""Measure perplexity: the loss of a model on evaluation windows with each method in its attention layers.

The batch size is 1 and only prefill is measured, as in the paper. steps/accuracy.py calls it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from seerbench.errors import Refused
from seerbench.measure.arm import Arm
from seerbench.models.hugging_face import attention_method
from seerbench.models.likelihood import window_nll


@torch.no_grad()
def perplexity(
    model: Any,
    windows: Mapping[str, np.ndarray],
    arms: Iterable[Arm],
    progress: tqdm | None = None,
    scored: int | None = None,
) -> list[dict[str, Any]]:
    """Return the loss of each window under each arm, in nats per token: one row per arm and document.

    The perplexity of a corpus is exp of the mean of these losses over its documents. Where a method refuses, or the
    loss is not finite, the row has the reason and no loss.

    Args:
        model: a Hugging Face model.
        windows: token ids [N] by document, as data.windows.evaluation_windows returns them.
        arms: the methods with their labels.
        progress: a bar that advances once per row.
        scored: the number of tokens at the end of a window over which the loss is averaged; None averages over all
            but the first.

    Returns:
        Rows of the table `perplexity`, without run_id, experiment, model and corpus.
    """
    rows = []
    device = next(model.parameters()).device
    for arm in arms:
        for document, window in windows.items():
            tokens = torch.from_numpy(window).long().to(device)
            row = {
                **arm.labels(),
                "recipe": arm.recipe,
                "document": document,
                "context": len(window),
                "tokens": scored or len(window) - 1,
                "sparsity_realised": None,
                "nll": None,
                "reason": None,
            }
            try:
                with attention_method(model, arm.method) as record:
                    nll = window_nll(model, tokens, scored=scored)
                arm.require_request(record.mean_sparsity())
                row["sparsity_realised"] = record.mean_sparsity()
                if math.isfinite(nll):
                    row |= {"nll": nll, "status": "measured"}
                else:
                    row |= {"status": "failed", "reason": f"the model's loss is not a number ({nll})"}
            except Refused as refusal:
                row |= {"status": "refused", "reason": str(refusal)}
            rows.append(row)
            if progress is not None:
                progress.update()
    return rows
