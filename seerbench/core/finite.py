"""Check that weights are finite, where they are saved and where they are loaded."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from seerbench.errors import ModelError


def require_finite(weights: Iterable[tuple[str, Tensor]], where: str, cure: str) -> None:
    """Raise ModelError for the first weight that holds NaN or an infinity.

    Args:
        weights: (name, tensor) of any shape and floating dtype, on any device; not sharded.
        where: what the weights belong to, which begins the text of the error.
        cure: what the user can do.
    """
    for name, weight in weights:
        if weight.numel() and not torch.stack(torch.aminmax(weight.detach())).isfinite().all():
            raise ModelError(f"{where}: the weight {name} holds values that are not finite numbers; {cure}")
