"""MInference: vertical-slash indices estimated online, here rounded outwards to blocks.

What      from the attention of the last 64 queries, the key columns and the diagonals that matter,
          per head and input
Source    arXiv:2407.02490, section 3; estimation as in microsoft/MInference v0.1.6 (MIT):
          modules/minference_forward.py (last 64 queries, columns 0-29 and diagonals 0-99 forced)
Fidelity  simplified: the selected columns and diagonals are rounded outwards to whole blocks and run on
          our block-sparse kernel (upstream's kernel takes unaligned tiles and gathered columns); one
          pattern for all heads (upstream's default file for Llama-3.1-8B-Instruct has vertical 512,
          slash 2048 everywhere), its two budgets scaled together until the requested density is met, and
          the forced runs scaled with the block size
Timed     plan (estimation, ranking, lists) and attend
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seerbench.attention import BlockMask, BlockSparse, Layer, block_count, causal_blocks, repeat_kv
from seerbench.gate import top_k_density
from seerbench.registry import register

LAST_QUERIES = 64  # queries that vote (upstream last_q)
FORCED_COLUMNS, FORCED_DIAGONALS = 30, 100  # upstream sets these scores to infinity, at blocks of 64
VERTICAL, SLASH = 512, 2048  # upstream config Llama_3.1_8B_Instruct_128k_..._v2.json, every head


@register("minference", cites="arXiv:2407.02490")
class MInference(BlockSparse):
    """Vertical-slash sparsity estimated from the last queries, rounded outwards to blocks."""

    def __init__(self, sparsity: float = 0.9, block: int = 64) -> None:
        self.sparsity, self.block = sparsity, block

    def plan(self, q: Tensor, k: Tensor, layer: Layer) -> BlockMask:
        tokens, block = q.shape[2], self.block
        columns, diagonals = vertical_slash_scores(q, k, block / 64)
        n = block_count(tokens, block)
        # A rank in units of its budget: at scale r the head keeps ranks below r in both lists.
        vertical = _ranks(columns) / VERTICAL
        slash = _ranks(diagonals) / SLASH
        cost = torch.minimum(
            _best_of_blocks(vertical, n, block)[..., None, :],
            _slash_cost(slash, n, block),
        )
        seen = causal_blocks(tokens, block, block, q.device)
        budget = max(1, round(top_k_density(n, self.sparsity) * int(seen.sum()) * q.shape[1]))
        scale = cost[:, :, seen].flatten(1).kthvalue(budget, dim=1).values[:, None, None, None]
        # Whole diagonals share a cost; where taking the last of them would pass the budget, leave it.
        fits = ((cost <= scale) & seen).flatten(1).sum(1) <= budget
        kept = (cost < scale) | ((cost <= scale) & fits[:, None, None, None])
        kept = (kept | torch.eye(n, dtype=torch.bool, device=q.device)) & seen
        return BlockMask.from_dense(kept, tokens, block, block)


def vertical_slash_scores(q: Tensor, k: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """q [B, Hq, N, D], k [B, Hk, N, D] -> fp32 scores of the N columns and the N diagonals, [B, Hq, N] each.

    Diagonal d holds the pairs with query - key = d. Forced entries are +inf; `scale` shortens the forced
    runs where smaller blocks stand for the paper's 64 (they would fill a short context's whole budget).
    """
    tokens = q.shape[2]
    last = min(LAST_QUERIES, tokens)
    scores = (q[:, :, -last:] @ repeat_kv(k, q.shape[1]).transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    rows = torch.arange(tokens - last, tokens, device=q.device)[:, None]
    keys = torch.arange(tokens, device=q.device)[None, :]
    weights = scores.masked_fill(keys > rows, -torch.inf).softmax(-1)
    columns = weights.sum(-2)
    columns[..., : round(FORCED_COLUMNS * scale)] = torch.inf
    # Shift row i right so that its key i lies in the last place: column c is then diagonal N - 1 - c.
    shifted = torch.stack(
        [F.pad(weights[..., i, : tokens - last + i + 1], (last - 1 - i, 0)) for i in range(last)], dim=-2
    )
    diagonals = shifted.sum(-2).flip(-1)
    diagonals[..., : round(FORCED_DIAGONALS * scale)] = torch.inf
    return columns, diagonals


def _ranks(scores: Tensor) -> Tensor:
    """Place of each entry in descending order, ties by index: fp32 like scores."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(scores.shape[-1], device=scores.device, dtype=torch.float32)
    return torch.empty_like(scores).scatter_(-1, order, places.expand_as(scores).contiguous())


def _best_of_blocks(ranks: Tensor, n: int, block: int) -> Tensor:
    """[B, H, N] -> [B, H, n]: the best rank in each block."""
    padded = F.pad(ranks, (0, n * block - ranks.shape[-1]), value=torch.inf)
    return padded.unflatten(-1, (n, block)).amin(-1)


def _slash_cost(ranks: Tensor, n: int, block: int) -> Tensor:
    """[B, H, N] -> [B, H, n, n]: the best rank among the diagonals that cross block (I, J)."""
    best = _best_of_blocks(ranks, n, block)
    # Block (I, J) is crossed by offsets (I-J) * block - (block-1) .. (I-J) * block + block-1. The lower part
    # belongs to the previous group of `block` diagonals (without that group's offset 0).
    inner = F.pad(ranks, (0, n * block - ranks.shape[-1]), value=torch.inf).unflatten(-1, (n, block))
    lower = inner[..., 1:].amin(-1) if block > 1 else torch.full_like(best, torch.inf)
    crossing = torch.minimum(best, F.pad(lower, (1, 0), value=torch.inf)[..., :n])
    offset = torch.arange(n, device=ranks.device)
    offset = (offset[:, None] - offset[None, :]).clamp_min(0)
    return crossing[..., offset]
