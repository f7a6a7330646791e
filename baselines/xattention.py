"""XAttention scores blocks by sums along antidiagonals.

What it is  q and k are sampled every `stride` tokens, so one dot product sums the logits on an antidiagonal
            of a stride x stride square. The softmax of these sums, added up over a block, is the block's mass.
            Block 0 and the diagonal are kept, then the blocks of largest mass until a share tau of the row's mass
            is kept
Paper       arXiv:2503.16428
Upstream    mit-han-lab/x-attention, read at e3798877
Settings    tau 0.9, stride 8 by default. Upstream's measurements have strides of 8 and 16 and blocks of 128, its
            function tau 0.8, and it ships thresholds per head, which are not ported. Rows name tau and stride
Fidelity    our port of the estimator and of the row rule, on our block-sparse kernel (upstream: blocks of 128 on
            Block-Sparse-Attention), with one tau for all heads. Exact: the block masses, also where the stride does
            not divide the length, and the row rule as the paper has it, which is upstream's code in every chunk of
            queries but the first. In that chunk, which is all of the input up to 16k tokens, upstream's code drops
            the forced block 0 and counts masses one block late, so it keeps about one block more per row; ours
            follows the paper everywhere. Not ported: upstream's torch path masks all chunks but the last at lengths
            that are exact multiples of its chunk; ours masks by position alone. The estimator is a kernel on every
            GPU (upstream: on those with "100" in their name, others run torch). Upstream's option keep_sink, which
            keeps the first row of queries and is off by default, is left out. Equal masses rank by their index
            (upstream: in no order). With a requested sparsity, tau is the one that keeps as many blocks as the
            top-k rule, over all heads; the blocks that are always kept count, and a request below them is refused
Compared    with the paper's definition and with upstream's first-chunk rule, written as loops
            (tests/baselines/test_xattention.py); upstream's kernels were not run. Upstream's speed-ups are over a
            dense baseline that it times without a causal mask
Timed       plan (scores, ranking, lists) and attend
"""

from __future__ import annotations

import copy
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
        self.configuration = f"stride {stride}" if sparsity is not None else f"tau {tau:g}, stride {stride}"
        parts = {f"tau{tau:g}": sparsity is None and tau != TAU, f"s{stride}": stride != STRIDE}
        self.variant = "-".join(text for text, other in parts.items() if other) or None

    def with_threshold_for(self, q: Tensor, k: Tensor, layer: LayerContext) -> XAttention:
        if self.sparsity is None:
            return self
        limit = budget_limit(self._mass_before(q, k), self.sparsity, self.last_rows_dense)
        found = copy.copy(self)
        found.sparsity, found.tau = None, math.nextafter(float(limit.max()), math.inf)
        return found

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        before, tokens = self._mass_before(q, k), q.shape[2]
        if self.sparsity is not None:
            return select_budget(before, self.sparsity, tokens, self.block, self.last_rows_dense)
        before[:, :, max(0, before.shape[-1] - self.last_rows_dense) :] = -torch.inf
        return mask_from_flags(before.double() < self.tau, tokens, self.block, self.block)

    def _mass_before(self, q: Tensor, k: Tensor) -> Tensor:
        """Return `mass_before` of each query head, fp32 [B, Hq, n, n]."""
        return mass_before(antidiagonal_mass(q, k, self.block, self.stride))


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
