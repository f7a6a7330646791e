"""Compute gate maps: the pooled attention map of a few heads, true and as the gate predicts it (Figure 7).

steps/accuracy.py calls it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seerbench.core.problem import LayerContext
from seerbench.errors import MeasureError
from seerbench.kernels.pooled.api import pooled_attention
from seerbench.methods.gate import AttnGate, gate_scores
from seerbench.methods.gate_losses import gate_target
from seerbench.models.hugging_face import for_each_layer


@torch.no_grad()
def gate_maps(
    model: Any, document: str, window: np.ndarray, gates: list[AttnGate], count: int = 5
) -> list[dict[str, Any]]:
    """Return the true and predicted maps of `count` heads on one document: one row per causal block.

    The heads are those whose true maps differ most (`most_different`), so that the figure shows several kinds of
    heads and not one kind several times. Raises MeasureError for a map that is not a number.

    Args:
        model: a Hugging Face model.
        document: the identifier of the document, for the rows.
        window: its token ids [N].
        gates: the gate of each layer, on the model's device.
        count: the number of heads.

    Returns:
        Rows of the table `maps`, without run_id, model and gate.
    """
    maps: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # (layer, head) -> target, predicted: [nq, nk]
    device, block = next(model.parameters()).device, gates[0].config.block

    def see(layer: LayerContext, q: Tensor, k: Tensor, v: Tensor) -> None:
        target = gate_target(pooled_attention(q, k, v, block)[2])[0].float().cpu()
        predicted = gate_scores(gates[layer.index], q, k, layer).softmax(-1)[0].cpu()
        if not (target.isfinite().all() and predicted.isfinite().all()):
            raise MeasureError(
                f"{document}, layer {layer.index}: the attention map is not a number, so the model overflows; load "
                "it in float32 or choose another"
            )
        for head in range(len(target)):
            maps[layer.index, head] = (target[head], predicted[head])

    for_each_layer(model, torch.from_numpy(window).long()[None].to(device), see)
    rows = []
    for layer, head in most_different({place: target for place, (target, _) in maps.items()}, count):
        target, predicted = maps[layer, head]
        for row, column in torch.ones_like(target).tril().nonzero().tolist():
            rows.append(
                {
                    "document": document,
                    "context": len(window),
                    "block": block,
                    "layer": layer,
                    "head": head,
                    "row": row,
                    "column": column,
                    "target": target[row, column].item(),
                    "predicted": predicted[row, column].item(),
                }
            )
    return rows


def most_different(maps: Mapping[Any, Tensor], count: int) -> list[Any]:
    """Return the sorted keys of `count` maps that lie far apart.

    The first is the map farthest from the mean map by Euclidean distance; each further one is the farthest from
    those chosen so far.
    """
    keys, stack = list(maps), torch.stack([each.flatten() for each in maps.values()])
    nearest = (stack - stack.mean(0)).norm(dim=1)
    chosen: list[int] = []
    for _ in range(min(count, len(keys))):
        pick = int(nearest.argmax())
        chosen.append(pick)
        distance = (stack - stack[pick]).norm(dim=1)
        nearest = distance if len(chosen) == 1 else torch.minimum(nearest, distance)
    return sorted(keys[index] for index in chosen)
