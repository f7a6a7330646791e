"""MoA: each head its own sliding window, chosen offline so that the model loses least.

What      head h keeps the first block and a window that grows with the context, span beta_h * N
Source    arXiv:2406.14909, sections 3 and 4
Upstream  thu-nics/MoA (MIT)
Fidelity  simplified: elastic rules with alpha = 0 and nine betas; the influence of a rule is the attention
          mass that it hides from the head on calibration text (upstream: the first-order change of the
          loss, from gradients); one density budget, solved exactly with HiGHS, at the length that is
          run (upstream: several lengths, at most two rules a layer). The plan runs on our kernel,
          which skips; upstream's kernel loads every tile
0.35      the sparsity that SeerAttention's tables give for MoA is its default KV density of 0.5 (mean span over
          context), counted as attention area; on this port a requested sparsity is attention area
Timed     plan (building the lists from the solved spans) and attend
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seerbench.attention import BlockMask, BlockSparse, Layer, block_count, causal_blocks, repeat_kv
from seerbench.gate import top_k_density
from seerbench.registry import register

BETAS = tuple(step / 16 for step in (0.5, 1, 2, 3, 4, 6, 8, 12, 16))  # span as a share of the context


@register("moa", cites="arXiv:2406.14909")
class MoA(BlockSparse):
    """A mixture of sliding windows, one span a head, profiled on calibration text."""

    def __init__(self, profile: Path | str, sparsity: float = 0.35, block: int = 64) -> None:
        """profile: the JSON file that `seerbench profile` writes for the model."""
        self.sparsity, self.block = sparsity, block
        self.influence = np.array(json.loads(Path(profile).read_text())["influence"])  # [layers, heads, betas]
        self._spans: dict[int, np.ndarray] = {}

    def plan(self, q: Tensor, k: Tensor, layer: Layer) -> BlockMask:
        n = block_count(q.shape[2], self.block)
        if n not in self._spans:
            self._spans[n] = solve_spans(self.influence, n, top_k_density(n, self.sparsity))
        spans = torch.as_tensor(self._spans[n][layer.index], device=q.device)
        kept = window_with_sink(spans, n).expand(q.shape[0], -1, n, n)
        return BlockMask.from_dense(kept, q.shape[2], self.block, self.block)


def span_blocks(n: int) -> np.ndarray:
    """Window of each beta in blocks, at a context of n blocks; at least the diagonal block."""
    return np.maximum(1, np.round(np.array(BETAS) * n)).astype(int)


def window_with_sink(spans: Tensor, n: int) -> Tensor:
    """Window lengths [H] in blocks -> bool [H, n, n]: the window and block 0."""
    rows = torch.arange(n, device=spans.device)
    distance = rows[:, None] - rows[None, :]
    return (distance[None] < spans[:, None, None]) | (rows[None, None, :] == 0)


def solve_spans(influence: np.ndarray, n: int, density: float) -> np.ndarray:
    """The window of each head, int [layers, heads]: least total influence at a mean block density.

    A multiple-choice knapsack, solved by scipy's HiGHS. When even the shortest windows are denser than
    the budget, they are the answer.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import identity, kron

    layers, heads, choices = influence.shape
    spans = span_blocks(n)
    causal = causal_blocks(n, 1, 1)
    share = [(w & causal).sum().item() / causal.sum().item() for w in window_with_sink(torch.tensor(spans), n)]
    units = layers * heads
    if min(share) >= density:
        return np.full((layers, heads), spans[int(np.argmin(share))])
    pick_one = LinearConstraint(kron(identity(units), np.ones((1, choices))).tocsr(), 1, 1)
    in_budget = LinearConstraint(np.tile(share, units)[None, :], 0, density * units)
    answer = milp(
        influence.reshape(-1),
        constraints=[pick_one, in_budget],
        integrality=np.ones(units * choices),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-3},
    )
    if answer.x is None:
        raise RuntimeError(f"MoA's plan for density {density:.3f} at {n} blocks was not solved: {answer.message}")
    return spans[answer.x.reshape(layers, heads, choices).argmax(-1)]


def profile_layer(q: Tensor, k: Tensor, block: int) -> Tensor:
    """Attention mass that each beta hides from each head: q [B, Hq, N, D], k [B, Hk, N, D] -> [Hq, betas]."""
    tokens = q.shape[2]
    n = block_count(tokens, block)
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril()
    scores = (q @ repeat_kv(k, q.shape[1]).transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~causal, -torch.inf).softmax(-1)
    block_mass = _sum_blocks(weights, n, block)  # [B, Hq, n, n]
    kept = window_with_sink(torch.as_tensor(span_blocks(n), device=q.device), n)
    return torch.stack([(block_mass * ~window).sum((-1, -2)).mean(0) / tokens for window in kept], dim=-1)


def _sum_blocks(weights: Tensor, n: int, block: int) -> Tensor:
    pad = n * block - weights.shape[-1]
    padded = torch.nn.functional.pad(weights, (0, pad, 0, pad))
    return padded.unflatten(-1, (n, block)).sum(-1).unflatten(-2, (n, block)).sum(-2)


def write_profile(path: Path, layers: Iterable[Tensor], about: dict[str, Any]) -> None:
    """layers: influence [Hq, betas] of each layer, averaged over the calibration text."""
    content = {**about, "betas": BETAS, "influence": [layer.tolist() for layer in layers]}
    path.write_text(json.dumps(content, indent=1) + "\n")
