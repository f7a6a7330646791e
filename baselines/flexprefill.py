"""FlexPrefill lets each head decide by its input: columns and diagonals, or blocks by pooled scores as well.

What it is  the last block of queries gives the attention mass of each column and diagonal. A head keeps the
            columns and diagonals that hold a share gamma of the mass, as blocks. Where pooling predicts the column
            masses well (Jensen-Shannon distance below tau) it keeps few of these, and the best blocks of a pooled
            softmax
Paper       arXiv:2502.20766, algorithms 1 to 4
Upstream    bytedance/FlexPrefill (Apache-2.0), read at a24b27bf
Fidelity    our port of the plan in torch, batched over heads (upstream: Python loops, batch 1), on our
            block-sparse kernel (upstream: Triton, blocks of 128). Budgets scale with the block if it is not 128.
            With a requested sparsity, gamma of each layer and input is found by bisection, inside the plan
Timed       plan (estimation, ranking, lists) and attend
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seerbench.core.block_mask import BlockMask, block_count, causal_blocks
from seerbench.core.block_sums import diagonal_sums
from seerbench.core.problem import LayerContext
from seerbench.core.reference import grouped_products, repeat_kv
from seerbench.core.top_k import top_k_density
from seerbench.kernels.attn_gate.reference import pool_blocks
from seerbench.methods.block_selection import mask_from_flags
from seerbench.methods.protocol import BlockSparse
from seerbench.methods.registry import register

# Share of the attention mass to keep, and the largest distance at which pooling is trusted: upstream's README.
GAMMA, TAU = 0.9, 0.1
# Least tokens that a head keeps as columns, and as diagonals: upstream's min_budget, at blocks of 128.
MIN_BUDGET = 512
UPSTREAM_BLOCK = 128
# Bisections of gamma in [0, 1] for a requested sparsity. This many resolve it to 0.00006.
BISECTIONS = 14

# Column mass and diagonal mass, distance, pooled softmax: the results of `estimate_blocks`.
Estimate = tuple[Tensor, Tensor, Tensor, Tensor]


@register("flexprefill", cites="arXiv:2502.20766", fidelity="our port of the plan, on our kernel")
class FlexPrefill(BlockSparse):
    """Columns and diagonals up to a share of the mass, pooled scores where pooling can be trusted."""

    def __init__(
        self, sparsity: float | None = None, block: int = 128, gamma: float = GAMMA, tau: float = TAU
    ) -> None:
        """Make the method.

        Args:
            sparsity: requested share of causal blocks to skip, in place of gamma.
            block: tokens per block.
            gamma: share of the attention mass to keep.
            tau: largest distance at which pooled scores are used.
        """
        self.sparsity, self.block, self.gamma, self.tau = sparsity, block, gamma, tau

    def with_threshold_for(self, q: Tensor, k: Tensor, layer: LayerContext) -> FlexPrefill:
        if self.sparsity is None:
            return self
        gamma = self._gamma_for(self.sparsity, estimate_blocks(q, k, self.block), q.shape[2])
        return FlexPrefill(block=self.block, gamma=gamma, tau=self.tau)

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        estimate = estimate_blocks(q, k, self.block)
        gamma = self.gamma
        if self.sparsity is not None:
            gamma = self._gamma_for(self.sparsity, estimate, q.shape[2])
        return self._mask(estimate, gamma, q.shape[2])

    def _mask(self, estimate: Estimate, gamma: float, tokens: int) -> BlockMask:
        return mask_from_flags(choose(*estimate, gamma, self.tau, self.block), tokens, self.block, self.block)

    def _gamma_for(self, sparsity: float, estimate: Estimate, tokens: int) -> float:
        """Return the largest gamma that keeps at most as many blocks as the top-k rule, by bisection."""
        if sparsity == 0:
            return 2.0  # a gamma above 1 keeps everything
        budget = top_k_density(block_count(tokens, self.block), sparsity)
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            gamma = (low + high) / 2
            fits = self._mask(estimate, gamma, tokens).density() <= budget
            low, high = (gamma, high) if fits else (low, gamma)
        return low


def estimate_blocks(q: Tensor, k: Tensor, block: int) -> Estimate:
    """Compute the masses, the distance and the pooled scores from which `choose` selects blocks, all in fp32.

    Args:
        q: queries [B, Hq, N, D].
        k: keys [B, Hk, N, D].
        block: tokens per block; n = ceil(N / block).

    Returns:
        The mass of each column and of each diagonal, [B, Hq, N] with sum 1; the Jensen-Shannon distance between
        pooled and true column mass of the last queries, [B, Hq]; the pooled softmax over blocks, [B, Hq, n, n].
    """
    tokens, head_dim = q.shape[2], q.shape[3]
    last, n = min(block, tokens), block_count(tokens, block)
    scores = grouped_products(q[:, :, -last:], k).float() * head_dim**-0.5
    rows = torch.arange(tokens - last, tokens, device=q.device)[:, None]
    weights = scores.masked_fill_(torch.arange(tokens, device=q.device) > rows, -torch.inf).softmax(-1)
    columns = weights.mean(-2)
    diagonals = diagonal_sums(weights) / last

    pooled_k = repeat_kv(pool_blocks(k, block)["avg"], q.shape[1]).float()
    mean_q = q[:, :, -last:].float().mean(2, keepdim=True)
    guess = ((mean_q @ pooled_k.mT) * head_dim**-0.5).softmax(-1)[:, :, 0]
    true = _sum_blocks(columns, block)
    middle = (guess + true) / 2
    divergence = sum((x * (x / middle).log().nan_to_num(0.0)).sum(-1) for x in (guess, true)) / 2
    pooled = pool_blocks(q, block)["avg"].float() @ pooled_k.mT * head_dim**-0.5
    pooled = pooled.masked_fill(~causal_blocks(n, 1, 1, q.device), -torch.inf).softmax(-1)
    return columns, diagonals, divergence.clamp_min(0).sqrt(), pooled


def choose(
    columns: Tensor, diagonals: Tensor, distance: Tensor, pooled: Tensor, gamma: float, tau: float, block: int
) -> Tensor:
    """Choose blocks from the results of `estimate_blocks`; return flags, bool [B, Hq, n, n].

    Args:
        columns: mass of each column, [B, Hq, N].
        diagonals: mass of each diagonal, [B, Hq, N].
        distance: Jensen-Shannon distance of each head, [B, Hq].
        pooled: pooled softmax, [B, Hq, n, n].
        gamma: share of the mass to keep.
        tau: largest distance at which pooled scores are used.
        block: tokens per block.
    """
    n, device = pooled.shape[-1], pooled.device
    minimum = max(1, MIN_BUDGET // UPSTREAM_BLOCK)
    pooling_trusted = distance < tau
    rows = torch.arange(n, device=device)
    chosen = []
    for mass in (columns, diagonals):
        ordered = mass.sort(-1, descending=True).values.cumsum(-1)
        count = ((ordered <= gamma).sum(-1) + 1) // block + 1
        count = torch.where(pooling_trusted, minimum, count.clamp(minimum, n))
        best = _sum_blocks(mass, block)
        best[..., 0] = torch.inf  # always keep the first block of columns or diagonals
        order = best.argsort(dim=-1, descending=True, stable=True)
        chosen.append(torch.zeros_like(best, dtype=torch.bool).scatter_(-1, order, rows < count[..., None]))
    distance_in_blocks = (rows[:, None] - rows).clamp_min(0)
    kept = chosen[0][..., None, :] | chosen[1][..., distance_in_blocks]
    # All rows are ranked together. A row of the softmax has sum 1, so the map has sum n.
    ranked = pooled.flatten(-2).sort(dim=-1, descending=True, stable=True)
    inside = ranked.values.cumsum(-1) <= gamma * n
    extra = torch.zeros_like(inside).scatter_(-1, ranked.indices, inside).unflatten(-1, (n, n))
    kept = kept | (extra & pooling_trusted[..., None, None])
    return kept & causal_blocks(n, 1, 1, device)


def _sum_blocks(mass: Tensor, block: int) -> Tensor:
    """Sum mass [B, H, N] over blocks, [B, H, n]."""
    padded = F.pad(mass, (0, -mass.shape[-1] % block))
    return padded.unflatten(-1, (-1, block)).sum(-1)
