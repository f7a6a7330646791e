"""XAttention: block scores from sums along antidiagonals.

What      q and k are read once every `stride` tokens, so that one dot product sums the logits on the antidiagonal
          of a stride x stride square; the softmax of those sums, added up over a block, is its mass. Block 0
          and the diagonal are kept, then the largest blocks until a share tau of a row's mass is kept
Source    arXiv:2503.16428
Upstream  mit-han-lab/x-attention, read at e3798877
Fidelity  our port of the estimator and of the row rule, on our block-sparse kernel (upstream: 128 x 128 blocks on
          Block-Sparse-Attention). Not ported: upstream's torch path masks all but the last chunk at lengths that
          are exact multiples of its chunk; ours masks by position alone.
          One tau for all heads.
          With a requested sparsity, tau is the one that keeps as many blocks as the top-k rule
          The estimator is a kernel on every GPU (upstream: on those with "100" in their name, others get torch)
Timed     plan (scores, ranking, lists) and attend
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import LayerContext
from seerbench.core.top_k import budget_limit
from seerbench.kernels.antidiagonal_mass.api import antidiagonal_mass
from seerbench.methods.block_selection import mask_from_flags, select_budget
from seerbench.methods.protocol import BlockSparse
from seerbench.methods.registry import register

STRIDE = 8  # upstream's default; 16 is its faster setting
TAU = 0.9  # upstream's default threshold


@register(
    "xattention",
    cites="arXiv:2503.16428",
    fidelity="our port of the plan without upstream's chunk bug, on our kernel",
)
class XAttention(BlockSparse):
    """Blocks by their mass on antidiagonals, until a share of each row's mass is kept."""

    def __init__(
        self, sparsity: float | None = None, block: int = 128, tau: float = TAU, stride: int = STRIDE
    ) -> None:
        """sparsity: in place of tau, when given."""
        if block % stride:
            raise ValueError(f"blocks of {block} do not hold whole strides of {stride}")
        self.sparsity, self.block, self.tau, self.stride = sparsity, block, tau, stride

    def with_threshold_for(self, q: Tensor, k: Tensor, layer: LayerContext) -> XAttention:
        """The same at the tau that a requested sparsity comes to on this input: what a timing runs."""
        limit = budget_limit(mass_before(antidiagonal_mass(q, k, self.block, self.stride)), self.sparsity)
        return XAttention(block=self.block, tau=math.nextafter(float(limit.max()), math.inf), stride=self.stride)

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        before = mass_before(antidiagonal_mass(q, k, self.block, self.stride))
        if self.sparsity is not None:
            return select_budget(before, self.sparsity, q.shape[2], self.block)
        return mask_from_flags(before.double() < self.tau, q.shape[2], self.block, self.block)


def mass_before(mass: Tensor) -> Tensor:
    """The share of its row's mass that is kept before a block's turn comes: kept if below tau.

    Block 0 and the diagonal come first and always (-inf); then blocks by falling mass, ties by index.
    """
    n = mass.shape[-1]
    first = torch.eye(n, dtype=torch.bool, device=mass.device)
    first[:, 0] = True
    order = mass.masked_fill(first, torch.inf).sort(dim=-1, descending=True, stable=True).indices
    ordered = mass.gather(-1, order)
    before = (ordered.cumsum(-1) - ordered) / mass.sum(-1, keepdim=True)
    return torch.empty_like(mass).scatter_(-1, order, before).masked_fill(first, -torch.inf)
