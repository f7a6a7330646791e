"""Measure block recall: the share of the oracle's blocks that a method keeps, per layer, head and document.

The oracle applies the top-k rule to the true pooled map. steps/accuracy.py calls it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from seerbench.core.block_mask import causal_blocks
from seerbench.core.problem import LayerContext
from seerbench.errors import MeasureError
from seerbench.kernels.pooled.api import pooled_attention
from seerbench.measure.arm import Arm
from seerbench.methods.block_selection import select_top_k
from seerbench.methods.gate_losses import gate_target
from seerbench.models.hugging_face import for_each_layer


@torch.no_grad()
def recall(model: Any, windows: Mapping[str, np.ndarray], arms: Iterable[Arm], block: int) -> list[dict[str, Any]]:
    """Compare the blocks of each arm with the oracle's: one row per document, layer, arm and query head.

    Raises MeasureError for a method without a requested sparsity, and for a map or plan that is not a number.

    The column recall is |method & oracle| / |oracle| at the same requested sparsity. The column mass is the share
    of the row-normalised pooled map on the blocks that the method keeps.

    Args:
        model: a Hugging Face model.
        windows: token ids [N] by document.
        arms: methods with a requested sparsity, whose plans are block masks.
        block: the block size in tokens.

    Returns:
        Rows of the table `recall`, without run_id, experiment, model and corpus.
    """
    rows, arms = [], list(arms)
    device = next(model.parameters()).device
    for document, window in tqdm(windows.items(), desc="recall", unit="doc", mininterval=1):

        def see(layer: LayerContext, q: Tensor, k: Tensor, v: Tensor, document: str = document) -> None:
            target = gate_target(pooled_attention(q, k, v, block)[2])  # [B, Hq, nq, nk]
            future = ~causal_blocks(target.shape[-1], 1, 1, q.device)
            ranked = target.float().masked_fill(future, -torch.inf)
            for arm in arms:
                sparsity = arm.method.sparsity
                if sparsity is None:
                    raise MeasureError(f"recall needs a requested sparsity; {arm.method.name} takes none")
                best = select_top_k(ranked, sparsity, q.shape[2], block).to_dense()
                plan = arm.method.plan(q, k, layer)
                sparsities = (1 - plan.head_density())[0].tolist()
                kept = plan.to_dense()
                recalls = ((kept & best).sum((-1, -2)) / best.sum((-1, -2)))[0].tolist()
                masses = ((target * kept).sum((-1, -2)) / target.shape[-1])[0].tolist()
                if not all(map(math.isfinite, [*sparsities, *recalls, *masses])):
                    raise MeasureError(
                        f"{document}, layer {layer.index}, {arm.method.name}: the attention map is not a number, "
                        "so the model overflows; load it in float32 or choose another"
                    )
                for head, values in enumerate(zip(sparsities, recalls, masses, strict=True)):
                    rows.append(
                        {
                            **arm.labels(),
                            "context": q.shape[2],
                            "layer": layer.index,
                            "head": head,
                            "document": document,
                            **dict(zip(("sparsity_realised", "recall", "mass"), values, strict=True)),
                        }
                    )

        for_each_layer(model, torch.from_numpy(window).long()[None].to(device), see)
    return rows
