"""XAttention scores blocks by sums along antidiagonals.

What it is  q and k are sampled every `stride` tokens, so one dot product sums the logits on an antidiagonal
            of a stride x stride square. The softmax of these sums, added up over a block, is the block's mass.
            Block 0 and the diagonal are kept, then the blocks of largest mass until a share tau of the row's mass
            is kept
Paper       arXiv:2503.16428
Upstream    mit-han-lab/x-attention, read at e3798877
Fidelity    our port of the estimator and of the row rule, on our block-sparse kernel (upstream: blocks of 128 on
            Block-Sparse-Attention), with one tau for all heads. Not ported: upstream's torch path masks all chunks
            but the last at lengths that are exact multiples of its chunk; ours masks by position alone. The
            estimator is a kernel on every GPU (upstream: on those with "100" in their name, others run torch).
            With a requested sparsity, tau is the one that keeps as many blocks as the top-k rule
Timed       plan (scores, ranking, lists) and attend
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
TAU = 0.9  # upstream's default share of a row's mass


@register(
    "xattention",
    cites="arXiv:2503.16428",
    fidelity="our port of the plan without upstream's chunk bug, on our kernel",
)
class XAttention(BlockSparse):
    """Blocks by their mass on antidiagonals, until a share of each row's mass is kept."""

    takes_last_rows = True

    def __init__(
        self, sparsity: float | None = None, block: int = 128, tau: float = TAU, stride: int = STRIDE
    ) -> None:
        """Make the method.

        Args:
            sparsity: requested share of causal blocks to skip, in place of tau.
            block: tokens per block.
            tau: share of each row's mass to keep.
            stride: distance of the sampled tokens; it divides the block.

        Raises:
            ValueError: the stride does not divide the block.
        """
        if block % stride:
            raise ValueError(f"the stride must divide the block; {stride} does not divide {block}")
        self.sparsity, self.block, self.tau, self.stride = sparsity, block, tau, stride

    def with_threshold_for(self, q: Tensor, k: Tensor, layer: LayerContext) -> XAttention:
        if self.sparsity is None:
            return self
        before = mass_before(antidiagonal_mass(q, k, self.block, self.stride))
        limit = budget_limit(before, self.sparsity, self.last_rows_dense)
        return XAttention(block=self.block, tau=math.nextafter(float(limit.max()), math.inf), stride=self.stride)

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        before = mass_before(antidiagonal_mass(q, k, self.block, self.stride))
        if self.sparsity is not None:
            return select_budget(before, self.sparsity, q.shape[2], self.block, self.last_rows_dense)
        kept = before.double() < self.tau
        kept[:, :, kept.shape[2] - self.last_rows_dense :] = True
        return mask_from_flags(kept, q.shape[2], self.block, self.block)


def mass_before(mass: Tensor) -> Tensor:
    """Return the share of its row's mass that is kept before each block's turn, fp32 [B, Hq, n, n].

    A block is kept if this share is below tau. Block 0 and the diagonal come first and have -inf; the others follow
    in the order of falling mass, and of their index where masses are equal. mass: fp32 [B, Hq, n, n].
    """
    n = mass.shape[-1]
    first = torch.eye(n, dtype=torch.bool, device=mass.device)
    first[:, 0] = True
    order = mass.masked_fill(first, torch.inf).sort(dim=-1, descending=True, stable=True).indices
    ordered = mass.gather(-1, order)
    before = (ordered.cumsum(-1) - ordered) / mass.sum(-1, keepdim=True)
    return torch.empty_like(mass).scatter_(-1, order, before).masked_fill(first, -torch.inf)
