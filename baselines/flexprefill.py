"""FlexPrefill: each head decides by its input between columns and diagonals, or pooled scores.

What      the last block of queries gives column and diagonal masses. Where pooling predicts the column masses well
          (Jensen-Shannon distance below tau) the head also keeps the blocks of a pooled softmax; else it keeps the
          columns and diagonals that hold a share gamma of the mass, in blocks
Source    arXiv:2502.20766, algorithms 1 to 4
Upstream  bytedance/FlexPrefill (Apache-2.0), read at a24b27bf
Fidelity  our port of the plan in torch, batched over heads (upstream: Python loops, batch 1), on our block-sparse
          kernel (upstream: Triton, blocks of 128). Budgets scale with the block where it is not 128.
          With a requested sparsity, gamma of each layer and input is found by bisection, inside the plan
Timed     plan (estimation, ranking, lists) and attend
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
from seerbench.methods.block_selection import mask_from_flags
from seerbench.methods.gate import pool_blocks
from seerbench.methods.protocol import BlockSparse
from seerbench.methods.registry import register

GAMMA, TAU = 0.9, 0.1  # upstream's README
LEAST_TOKENS = 512  # min_budget there, at blocks of 128
BISECTIONS = 14


@register("flexprefill", cites="arXiv:2502.20766", fidelity="our port of the plan, on our kernel")
class FlexPrefill(BlockSparse):
    """Columns and diagonals up to a share of the mass, pooled scores where pooling can be trusted."""

    def __init__(
        self, sparsity: float | None = None, block: int = 128, gamma: float = GAMMA, tau: float = TAU
    ) -> None:
        """sparsity: in place of gamma, when given."""
        self.sparsity, self.block, self.gamma, self.tau = sparsity, block, gamma, tau

    def with_threshold_for(self, q: Tensor, k: Tensor, layer: LayerContext) -> FlexPrefill:
        """The same at the gamma that a requested sparsity comes to on this input: what a timing runs."""
        gamma = self._gamma(estimate_blocks(q, k, self.block), q.shape[2])
        return FlexPrefill(block=self.block, gamma=gamma, tau=self.tau)

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        estimate = estimate_blocks(q, k, self.block)
        gamma = self.gamma if self.sparsity is None else self._gamma(estimate, q.shape[2])
        return self._mask(estimate, gamma, q.shape[2])

    def _mask(self, estimate: tuple[Tensor, ...], gamma: float, tokens: int) -> BlockMask:
        return mask_from_flags(choose(*estimate, gamma, self.tau, self.block), tokens, self.block, self.block)

    def _gamma(self, estimate: tuple[Tensor, ...], tokens: int) -> float:
        """The largest gamma that keeps at most as many blocks as the top-k rule, by bisection."""
        if self.sparsity == 0:
            return 2.0  # above 1: all
        budget = top_k_density(block_count(tokens, self.block), self.sparsity)
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            gamma = (low + high) / 2
            fits = self._mask(estimate, gamma, tokens).density() <= budget
            low, high = (gamma, high) if fits else (low, gamma)
        return low


def estimate_blocks(q: Tensor, k: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q [B, Hq, N, D], k [B, Hk, N, D] -> what the choice is made from, fp32.

    Column and diagonal mass, [B, Hq, N] each with sum 1; the Jensen-Shannon distance between pooled and true
    column mass of the last queries, [B, Hq]; the pooled softmax over blocks, [B, Hq, n, n].
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
    true = _pool(columns, block)
    middle = (guess + true) / 2
    divergence = sum((x * (x / middle).log().nan_to_num(0.0)).sum(-1) for x in (guess, true)) / 2
    pooled = pool_blocks(q, block)["avg"].float() @ pooled_k.mT * head_dim**-0.5
    pooled = pooled.masked_fill(~causal_blocks(n, 1, 1, q.device), -torch.inf).softmax(-1)
    return columns, diagonals, divergence.clamp_min(0).sqrt(), pooled


def choose(
    columns: Tensor, diagonals: Tensor, distance: Tensor, pooled: Tensor, gamma: float, tau: float, block: int
) -> Tensor:
    """The rule on `estimate_blocks`' four -> kept blocks, bool [B, Hq, n, n]."""
    n, device = pooled.shape[-1], pooled.device
    least = max(1, LEAST_TOKENS // 128)
    aware = distance < tau
    rows = torch.arange(n, device=device)
    picked = []
    for mass in (columns, diagonals):
        ordered = mass.sort(-1, descending=True).values.cumsum(-1)
        count = ((ordered <= gamma).sum(-1) + 1) // block + 1
        count = torch.where(aware, least, count.clamp(least, n))
        best = _pool(mass, block)
        best[..., 0] = torch.inf  # the first columns, the diagonal itself
        order = best.argsort(dim=-1, descending=True, stable=True)
        picked.append(torch.zeros_like(best, dtype=torch.bool).scatter_(-1, order, rows < count[..., None]))
    apart = (rows[:, None] - rows).clamp_min(0)
    kept = picked[0][..., None, :] | picked[1][..., apart]
    # All rows in one ranking: a row of the softmax has sum 1, so the whole map has n.
    ranked = pooled.flatten(-2).sort(dim=-1, descending=True, stable=True)
    inside = ranked.values.cumsum(-1) <= gamma * n
    extra = torch.zeros_like(inside).scatter_(-1, ranked.indices, inside).unflatten(-1, (n, n))
    kept = kept | (extra & aware[..., None, None])
    return kept & causal_blocks(n, 1, 1, device)


def _pool(mass: Tensor, block: int) -> Tensor:
    """[B, H, N] -> [B, H, n]: sums over blocks."""
    padded = F.pad(mass, (0, -mass.shape[-1] % block))
    return padded.unflatten(-1, (-1, block)).sum(-1)
