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
from seerbench.core.reference import repeat_kv
from seerbench.errors import MeasureError
from seerbench.kernels.pooled.api import pooled_attention
from seerbench.measure.arm import Arm
from seerbench.methods.block_selection import select_top_k
from seerbench.methods.gate_losses import gate_target
from seerbench.models.hugging_face import for_each_layer


@torch.no_grad()
def recall(
    model: Any,
    windows: Mapping[str, np.ndarray],
    arms: Iterable[Arm],
    block: int,
    asked: Mapping[str, tuple[int, int]] | None = None,
) -> list[dict[str, Any]]:
    """Compare the blocks of each arm with the oracle's: one row per document, layer, arm and query head.

    Raises MeasureError for a method without a requested sparsity, and for a map or plan that is not a number.

    The column recall is |method & oracle| / |oracle| at the same requested sparsity. The column mass is the share
    of the row-normalised pooled map on the blocks that the method keeps. Where a window asks a question, the column
    asked_mass is the share of the asking token's attention that goes to the block with the answer, and asked_kept
    says whether the method keeps that block in the block row of this token.

    Args:
        model: a Hugging Face model.
        windows: token ids [N] by document.
        arms: methods with a requested sparsity, whose plans are block masks.
        block: the block size in tokens.
        asked: by document, the token that asks and the token that has the answer.

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
            mass = asked_mass(q, k, block, *asked[document]) if asked else None
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
                    if asked is not None and mass is not None:
                        row, column = (token // block for token in asked[document])
                        rows[-1] |= {"asked_mass": mass[head], "asked_kept": bool(kept[0, head, row, column])}

        for_each_layer(model, torch.from_numpy(window).long()[None].to(device), see)
    return rows


def asked_mass(q: Tensor, k: Tensor, block: int, asking: int, answer: int) -> list[float]:
    """Return how much of a token's attention goes to the block that has another token, for each query head.

    Args:
        q: queries [1, Hq, N, D] after RoPE.
        k: keys [1, Hk, N, D] after RoPE.
        block: the block size in tokens.
        asking: the place of the token that attends.
        answer: the place of the other token, which is before it.
    """
    scores = q[0, :, asking, None] @ repeat_kv(k, q.shape[1])[0, :, : asking + 1].transpose(1, 2)
    weights = (scores.float() * q.shape[-1] ** -0.5).softmax(-1)[:, 0]  # [Hq, asking + 1]
    first = answer // block * block
    return weights[:, first : first + block].sum(-1).tolist()
