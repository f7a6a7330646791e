"""correctness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import LayerContext
from seerbench.core.reference import reference_attention
from seerbench.core.tolerance import error_and_budget
from seerbench.kernels.pooled import reference as pooled_reference
from seerbench.methods.block_sparse_kernels import laid_out
from seerbench.methods.protocol import Method

# The oracle holds several float64 maps; past this context a check runs on fewer tokens, odd in blocks.
CHECK_WHOLE, CHECK_TOKENS = 1024, 1000


def check_tokens(context: int) -> int:
    """Tokens on which a method is checked against the oracle before it is timed at `context`."""
    return context if context <= CHECK_WHOLE else CHECK_TOKENS


def check_attend(method: Any, q: Tensor, k: Tensor, v: Tensor, plan: BlockMask | None) -> tuple[float, float]:
    """(error, budget) of `attend` under a given mask against the float64 oracle."""
    exact, rounded = reference_attention(q, k, v, plan)[0], reference_attention(q, k, v, plan, q.dtype)[0]
    return error_and_budget(method.attend(q, k, v, laid_out(method, plan)), exact, rounded)


def check_method(
    method: Method, q: Tensor, k: Tensor, v: Tensor, layer: LayerContext
) -> tuple[float | None, float | None]:
    """The same for a method's own mask on the first tokens; (None, None) for a plan without a token mask."""
    tokens = check_tokens(q.shape[2])
    q, k, v = (x[:, :, :tokens] for x in (q, k, v))
    if layer.q_unrotated is not None:
        first = {name: getattr(layer, name)[:, :, :tokens] for name in ("q_unrotated", "k_unrotated")}
        layer = replace(layer, **first)
    plan = method.plan(q, k, layer)
    if plan is not None and not hasattr(plan, "to_token_mask"):
        return None, None
    if hasattr(method, "exact"):  # computes something else than attention over the plan
        exact, rounded = (method.exact(q, k, v, plan, dtype) for dtype in (torch.float64, q.dtype))
        return error_and_budget(method.attend(q, k, v, plan), exact, rounded)
    return check_attend(method, q, k, v, plan)


def check_pooled(kernel: Callable, q: Tensor, k: Tensor, v: Tensor, block: int) -> tuple[float, float]:
    """(error, budget) of the output or the map of a pooled kernel, whichever uses more of its budget."""
    naive = pooled_reference.naive_pooled_attention
    exact, rounded, actual = naive(q, k, v, block, torch.float64), naive(q, k, v, block), kernel(q, k, v, block)
    pairs = [error_and_budget(actual[i], exact[i], rounded[i]) for i in (0, 2)]
    return max(pairs, key=lambda pair: pair[0] / pair[1] if pair[1] else torch.inf)
