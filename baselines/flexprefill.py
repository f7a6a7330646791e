"""FlexPrefill lets each head decide by its input: columns and diagonals, or blocks by pooled scores as well.

What it is  the last block of queries gives the attention mass of each column and diagonal. A head keeps the
            columns and diagonals that hold a share gamma of the mass, as blocks. Where pooling predicts the column
            masses well (Jensen-Shannon distance below tau) it keeps few of these, and the best blocks of a pooled
            softmax
Paper       arXiv:2502.20766, algorithms 1 to 4
Upstream    bytedance/FlexPrefill (Apache-2.0), read at a24b27bf
Settings    gamma 0.9, tau 0.1, min_budget 512 are those of upstream's README. Its scripts for RULER have gamma 0.95
            (Llama) or 0.9 and min_budget 1024. Rows name gamma and min_budget
Fidelity    our port of the plan in torch, batched over heads (upstream: Python loops, batch 1), on our
            block-sparse kernel (upstream: Triton, blocks of 128). Exact at blocks of 128: the masses, the budgets,
            the least ceil(min_budget / block) blocks of columns and of diagonals, dense attention up to
            max(2 * block, min_budget) tokens, with min_budget in whole blocks, the choice by pooled scores, and
            lengths that the block does not divide: diagonals are grouped from the far end, so the group with
            diagonal 0 is then the short one. Different: at other blocks upstream still divides the number of tokens
            by 128, ours by the block. Upstream's distance is not a number where a mass underflows to 0, and pooling
            is then not trusted; ours counts 0 log 0 as 0. Equal masses rank by their index (upstream: in no order).
            With a requested sparsity, gamma of each layer and input is found by bisection, inside the plan; columns
            and diagonals are whole and the least budget is always kept, so a request that they cannot meet is
            refused
Compared    with upstream's formulas, written as loops (tests/baselines/test_flexprefill.py); upstream was not run
Timed       plan (estimation, ranking, lists) and attend
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from seerbench.core.block_mask import BlockMask, block_count, causal_blocks
from seerbench.core.block_sums import diagonal_sums
from seerbench.core.problem import LayerContext
from seerbench.core.reference import grouped_products, repeat_kv
from seerbench.core.top_k import nearest_by_bisection, require_budget, top_k_density
from seerbench.kernels.attn_gate.reference import pool_blocks
from seerbench.methods.block_selection import mask_from_flags
from seerbench.methods.protocol import BlockSparse
from seerbench.methods.registry import register

# Share of the attention mass to keep, and the largest distance at which pooling is trusted: upstream's README.
GAMMA, TAU = 0.9, 0.1
# Least tokens that a head keeps as columns, and as diagonals: upstream's README.
MIN_BUDGET = 512
# Column mass and diagonal mass, distance, pooled softmax: the results of `estimate_blocks`.
Estimate = tuple[Tensor, Tensor, Tensor, Tensor]


@register("flexprefill", cites="arXiv:2502.20766", fidelity="our port of the plan, on our kernel")
class FlexPrefill(BlockSparse):
    """Columns and diagonals up to a share of the mass, pooled scores where pooling can be trusted."""

    takes_last_rows = True

    def __init__(
        self,
        sparsity: float | None = None,
        block: int = 128,
        gamma: float = GAMMA,
        tau: float = TAU,
        min_budget: int = MIN_BUDGET,
    ) -> None:
        """Make the method.

        Args:
            sparsity: requested share of causal blocks to skip, in place of gamma.
            block: tokens per block.
            gamma: share of the attention mass to keep.
            tau: largest distance at which pooled scores are used.
            min_budget: least tokens that a head keeps as columns, and as diagonals, in whole blocks.
        """
        self.sparsity, self.block, self.gamma, self.tau, self.min_budget = sparsity, block, gamma, tau, min_budget
        least = f"min_budget {min_budget}"
        self.configuration = least if sparsity is not None else f"gamma {gamma:g}, {least}"
        parts = {
            f"gamma{gamma:g}": sparsity is None and gamma != GAMMA,
            f"min{min_budget}": min_budget != MIN_BUDGET,
        }
        self.variant = "-".join(text for text, other in parts.items() if other) or None

    def with_threshold_for(self, q: Tensor, k: Tensor, layer: LayerContext) -> FlexPrefill:
        if self.sparsity is None:
            return self
        found = copy.copy(self)
        found.gamma = self._gamma_for(self.sparsity, estimate_blocks(q, k, self.block), q.shape[2])
        found.sparsity = None
        return found

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        estimate = estimate_blocks(q, k, self.block)
        gamma = self.gamma
        if self.sparsity is not None:
            gamma = self._gamma_for(self.sparsity, estimate, q.shape[2])
        return self._mask(estimate, gamma, q.shape[2])

    def _mask(self, estimate: Estimate, gamma: float, tokens: int) -> BlockMask:
        least, n = -(-self.min_budget // self.block), estimate[-1].shape[-1]
        kept = choose(*estimate, gamma, self.tau, self.block, least)
        dense_rows = n if tokens <= self._dense_to() else self.last_rows_dense
        kept[:, :, max(0, n - dense_rows) :] = True
        return mask_from_flags(kept, tokens, self.block, self.block)

    def _dense_to(self) -> int:
        """Return the number of tokens up to which attention is dense."""
        return self.block * max(2, -(-self.min_budget // self.block))

    def _gamma_for(self, sparsity: float, estimate: Estimate, tokens: int) -> float:
        """Return the gamma whose number of blocks is the nearest to the top-k rule's, by bisection.

        Raises:
            Refused: its number of blocks is not near enough to the request.
        """
        if sparsity == 0:
            return 2.0  # a gamma above 1 keeps everything
        n = block_count(tokens, self.block)
        budget = top_k_density(n, sparsity, self.last_rows_dense)
        gamma, density = nearest_by_bisection(
            lambda gamma: self._mask(estimate, gamma, tokens).density(), budget, 0.0, 1.0
        )
        why = f"with {self.configuration} and whole blocks, no plan is nearer at {tokens} tokens"
        if tokens <= self._dense_to():
            why = f"with {self.configuration} attention is dense up to {self._dense_to()} tokens"
        require_budget(density, sparsity, why, n)
        return gamma


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
    columns: Tensor,
    diagonals: Tensor,
    distance: Tensor,
    pooled: Tensor,
    gamma: float,
    tau: float,
    block: int,
    least: int,
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
        least: smallest number of blocks of columns, and of groups of diagonals.
    """
    n, device = pooled.shape[-1], pooled.device
    pooling_trusted = distance < tau
    rows = torch.arange(n, device=device)
    chosen = []
    # Diagonals are grouped from the far end, so the group with diagonal 0 may be a short one.
    for mass, sums in (
        (columns, _sum_blocks(columns, block)),
        (diagonals, _sum_blocks(diagonals.flip(-1), block).flip(-1)),
    ):
        ordered = mass.sort(-1, descending=True).values.cumsum(-1)
        count = ((ordered <= gamma).sum(-1) + 1) // block + 1
        count = torch.where(pooling_trusted, least, count.clamp(least, n))
        sums[..., 0] = torch.inf  # always keep the first block of columns or diagonals
        order = sums.argsort(dim=-1, descending=True, stable=True)
        chosen.append(torch.zeros_like(sums, dtype=torch.bool).scatter_(-1, order, rows < count[..., None]))
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
