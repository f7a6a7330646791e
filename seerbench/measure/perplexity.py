"""Accuracy: perplexity, retrieval tasks, block recall and gate maps of a model with a method inside.

Between models and rows: each function takes arms (a method with its labels) and returns rows.
Batch 1 for perplexity, prefill only, like the paper.
"""

from __future__ import annotations

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
    """NLL of each window (one a document, `corpus.evaluation_windows`) under each arm.

    Perplexity is exp of the mean over documents of these means. A method that refuses gives one row
    a document with its reason. scored: as in `window_nll`.
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
                row |= {"nll": nll, "sparsity_realised": record.mean_sparsity(), "status": "measured"}
            except Refused as refusal:
                row |= {"status": "refused", "reason": str(refusal)}
            rows.append(row)
            if progress:
                progress.update()
    return rows
