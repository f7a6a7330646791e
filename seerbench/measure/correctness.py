"""Check outputs against the float64 reference: the one place that decides whether a kernel or method is right.

The sweeps check every method once before they time it, on all tokens of a short input or on the first CHECK_TOKENS;
`seerbench compare` checks a kernel on many small cases (compare/check.py). Both use the tolerance of
core/tolerance.py: an output may miss the reference by twice what plain rounding in the same dtype misses.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import LayerContext
from seerbench.core.reference import reference_attention
from seerbench.core.tolerance import error_and_budget
from seerbench.errors import Refused
from seerbench.kernels.pooled import reference as pooled_reference
from seerbench.methods.block_sparse_kernels import laid_out
from seerbench.methods.protocol import Method, Plan

# The reference holds several N x N maps in float64, so only up to this context does a check use all tokens.
MAX_CHECKED_CONTEXT = 1024
# Beyond that context it uses the first 1000. They are no multiple of a block, so a partial block is checked too.
CHECK_TOKENS = 1000
# Requests at which a method is checked where its own cannot be met with so few tokens.
CHECK_SPARSITIES = (0.7, 0.5, 0.3, 0.2, 0.1, 0.0)


@dataclass(frozen=True)
class Check:
    """The largest absolute error of an output against its reference, and the error that rounding explains."""

    error: float
    budget: float

    @property
    def passed(self) -> bool:
        """Return whether the error is within the budget; False for NaN."""
        return self.error <= self.budget


@dataclass(frozen=True)
class Comparison:
    """An output beside its reference.

    Attributes:
        check: the error and its budget; an output with a NaN or a stray infinity has error inf and budget 0.
        exact: float64 reference, of the output's shape.
        rounding_budget: the budget without regard to NaN, for comparing the finite elements of a wrong output.
    """

    check: Check
    exact: Tensor
    rounding_budget: float


def compare_with_reference(actual: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Comparison:
    """Compare an attention output with attention computed by definition in float64.

    Args:
        actual: the output [B, Hq, N, D] to check.
        q: queries [B, Hq, N, D]; the rounding of their dtype sets the budget.
        k: keys [B, Hk, N, D].
        v: values [B, Hk, N, D].
        mask: a BlockMask or another plan with `to_token_mask`; None for dense causal attention.
    """
    exact = reference_attention(q, k, v, mask)[0]
    rounded = reference_attention(q, k, v, mask, q.dtype)[0]
    check = Check(*error_and_budget(actual, exact, rounded))
    return Comparison(check, exact, error_and_budget(rounded, exact, rounded)[1])


def check_tokens(context: int) -> int:
    """Return the number of tokens on which a method is checked before it is timed at `context` tokens."""
    return context if context <= MAX_CHECKED_CONTEXT else CHECK_TOKENS


def check_attend(method: Any, q: Tensor, k: Tensor, v: Tensor, plan: BlockMask | None) -> Check:
    """Check `attend` of a method or kernel under a given mask; a plan of None is dense attention."""
    return compare_with_reference(method.attend(q, k, v, laid_out(method, plan)), q, k, v, plan).check


def check_method(method: Method, q: Tensor, k: Tensor, v: Tensor, layer: LayerContext) -> Check | None:
    """Check a method under its own plan on the first tokens of a layer.

    Returns None for a plan without a token mask (`to_token_mask`), since its reference is unknown.

    Args:
        method: the method; its `exact` says what `attend` should return.
        q: queries [B, Hq, N, D], rotated.
        k: keys [B, Hk, N, D], rotated.
        v: values [B, Hk, N, D].
        layer: the layer's context, with q and k before RoPE where the method needs them.
    """
    context, tokens = q.shape[2], check_tokens(q.shape[2])
    q, k, v = (x[:, :, :tokens] for x in (q, k, v))
    if layer.q_unrotated is not None and layer.k_unrotated is not None:
        layer = replace(
            layer, q_unrotated=layer.q_unrotated[:, :, :tokens], k_unrotated=layer.k_unrotated[:, :, :tokens]
        )
    method, plan = _planned(method, q, k, layer, shortened=tokens < context)
    exact, rounded = (method.exact(q, k, v, plan, dtype) for dtype in (torch.float64, q.dtype))
    if exact is None or rounded is None:
        return None
    return Check(*error_and_budget(method.attend(q, k, v, plan), exact, rounded))


def _planned(
    method: Method, q: Tensor, k: Tensor, layer: LayerContext, shortened: bool
) -> tuple[Method, Plan | None]:
    """Return the method with its plan for the input of a check.

    A few blocks cannot meet a high request. On a shortened input the method is therefore checked at the highest of
    CHECK_SPARSITIES that it can meet there; whether it meets its own request is decided at the full context.
    """
    for sparsity in CHECK_SPARSITIES:
        try:
            return method, method.plan(q, k, layer)
        except Refused:
            if not shortened or method.sparsity is None or method.sparsity == 0:
                raise
            method = _at_sparsity(method, min(sparsity, method.sparsity))
    return method, method.plan(q, k, layer)


def _at_sparsity(method: Method, sparsity: float) -> Method:
    """Return a copy of a method, and of the method that it wraps, that requests another sparsity."""
    method = copy.copy(method)
    method.sparsity = sparsity
    inner = getattr(method, "method", None)
    if isinstance(inner, Method):
        method.method = _at_sparsity(inner, sparsity)  # type: ignore[attr-defined]
    return method


def check_decoding(actual: Tensor, q: Tensor, k: Tensor, v: Tensor, read: Tensor | None) -> Check:
    """Check attention of one new token per sequence over a part of a cache.

    Args:
        actual: the output [B, Hq, 1, D] to check.
        q: queries [B, Hq, 1, D].
        k: keys [B, Hk, N, D].
        v: values [B, Hk, N, D].
        read: the tokens that are read, bool [B, Hk, N]; None for all.
    """
    read = torch.ones(k.shape[:3], dtype=torch.bool, device=k.device) if read is None else read
    pairs = read.repeat_interleave(q.shape[1] // k.shape[1], 1)[:, :, None]
    exact, rounded = (reference_attention(q, k, v, pairs, dtype)[0] for dtype in (torch.float64, q.dtype))
    return Check(*error_and_budget(actual, exact, rounded))


def check_pooled(kernel: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, block: int) -> Check:
    """Check output and pooled map of a pooled-attention kernel; return the one that uses more of its budget.

    Args:
        kernel: (q, k, v, block) -> (output [B, Hq, N, D], log-sum-exp, pooled map [B, Hq, nq, nk]).
        q: queries [B, Hq, N, D].
        k: keys [B, Hk, N, D].
        v: values [B, Hk, N, D].
        block: the block size in tokens.
    """
    naive = pooled_reference.naive_pooled_attention
    exact, rounded, actual = naive(q, k, v, block, torch.float64), naive(q, k, v, block), kernel(q, k, v, block)
    checks = [Check(*error_and_budget(actual[i], exact[i], rounded[i])) for i in (0, 2)]
    return max(checks, key=lambda check: check.error / check.budget if check.budget else torch.inf)
