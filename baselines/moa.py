"""MoA: each head its own sliding window that grows with the context, chosen offline so that the model loses least.

What      head h keeps the first block and a window; both together span alpha_h + beta_h * N tokens. The rules
          (alpha, beta) of all heads stand in a plan file, which is searched for one model (seerbench/search/moa.py)
Source    arXiv:2406.14909, sections 3 and 4
Upstream  thu-nics/MoA (MIT), read at e224fe3e; plans in its format, {"alphas": [[head, ...], ...], "betas": ...}
Fidelity  our port. Ported: profile by the gradient of the loss, elastic rules, at most two of them a layer, one
          objective a length, density bounds at each length and at an extension length, Pareto plans, the one with
          the lowest validation loss taken; mask as at run time there, its reserve for 1024 generated tokens
          included. Departures: solved by HiGHS (upstream: Gurobi); calibrated on the model's own greedy
          continuations of the preset's text (upstream: its summaries of MultiNews); key/value heads stay
          shared, rules are a query head's as there; lengths, blocks and grid steps scale with the preset;
          the grid has finer rules below an eighth of the context, without which 90% is out of reach
Kernel    ours skips. Upstream's loads every key tile and leaves out arithmetic only, which is why MoA is slower
          than dense in the paper's Table 4: `moa` says what the plan could give, not what upstream's code gives
0.35      the sparsity that SeerAttention's tables give for MoA is its default KV density of 0.5 (mean span over
          context) counted as attention area. Heads that differ make it 0.33 to 0.43; equal ones would be 0.25.
          Without a requested sparsity a plan is bound to that KV density; a requested one bounds the area, and
          its spans leave no room for generated tokens
Timed     plan (building the lists from the rules) and attend
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.problem import LayerContext
from seerbench.methods.protocol import BlockSparse
from seerbench.methods.registry import register

RESERVE = 16  # blocks: upstream plans for 1024 tokens to be generated, at blocks of 64
LEAST = 2  # blocks of the shortest span: sink and diagonal


@register("moa", cites="arXiv:2406.14909", fidelity="our port, searched for the model; on our kernel, which skips")
class MoA(BlockSparse):
    """A mixture of sliding windows, one growing span a head, searched offline."""

    def __init__(self, plan: Path | str, sparsity: float | None = None, block: int = 64) -> None:
        """plan: a file of `load_plan`. sparsity: the one that it was searched for; None for its own."""
        self.sparsity, self.block = sparsity, block
        self.alphas, self.betas = load_plan(plan)
        self.configuration = Path(plan).stem

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        if layer.index >= len(self.alphas) or len(self.alphas[layer.index]) != q.shape[1]:
            shape = f"{len(self.alphas)} layers of {len(self.alphas[0])} heads"
            heads = f"layer {layer.index} has {q.shape[1]} heads"
            raise ValueError(f"the plan {self.configuration} is for {shape}; {heads}")
        rules = self.alphas[layer.index], self.betas[layer.index]
        windows = window_blocks(*rules, q.shape[2], self.block, reserve_for(self.sparsity))
        return windows_and_sink(windows, q.shape[0], q.shape[2], self.block, q.device)


def reserve_for(sparsity: float | None) -> int:
    """Blocks of generated tokens that spans count in: upstream's; none where a sparsity of prefill is asked for."""
    return RESERVE if sparsity is None else 0


def window_blocks(alphas: Any, betas: Any, tokens: int, block: int, reserve: int = RESERVE) -> np.ndarray:
    """Rules -> length of the window in blocks, the diagonal's among them; the sink block is not counted."""
    reach = tokens + reserve * block
    span = np.minimum(np.trunc(np.asarray(alphas) + np.asarray(betas) * reach), reach)
    return (np.ceil(np.maximum(span, LEAST * block) / block) - 1).astype(int)


def windows_and_sink(windows: np.ndarray, batch: int, tokens: int, block: int, device: Any = "cpu") -> BlockMask:
    """Block 0 and, for each head, the nearest `windows` [Hq] blocks: the mask as lists, no n x n map."""
    n = block_count(tokens, block)
    near = torch.as_tensor(windows, device=device)[:, None]
    row = torch.arange(n, device=device)
    start = (row - near + 1).clamp_min(0)  # [Hq, n]: first block of the window
    counts = row - start + 1 + (start > 0).int()
    place = torch.arange(min(n, int(windows.max()) + 1), device=device)
    listed = torch.where(start[..., None] > 0, start[..., None] + place - 1, place)
    listed[..., 0] = 0
    listed = torch.where(place < counts[..., None], listed, 0)
    shape = (batch, *listed.shape)
    return BlockMask(
        counts.int().expand(shape[:-1]).contiguous(), listed.int().expand(shape).contiguous(), tokens, block, block
    )


def block_density(windows: np.ndarray, n: int) -> np.ndarray:
    """Share of the causal blocks of n rows that windows of these lengths and the sink keep."""
    row = np.arange(n)
    kept = np.minimum(row + 1, np.asarray(windows)[..., None] + 1).sum(-1)
    return kept / (n * (n + 1) / 2)


def load_plan(path: Path | str) -> tuple[list[list[float]], list[list[float]]]:
    """(alphas, betas), each by layer and head, of a file in upstream's format; ValueError for another."""
    content = json.loads(Path(path).read_text())
    if not isinstance(content, dict) or not {"alphas", "betas"} <= content.keys():
        raise ValueError(f'{path} is no plan of MoA: expected {{"alphas": [[...], ...], "betas": [[...], ...]}}')
    alphas, betas = content["alphas"], content["betas"]
    if [len(layer) for layer in alphas] != [len(layer) for layer in betas]:
        raise ValueError(f"{path}: alphas and betas have different numbers of layers or heads")
    return alphas, betas


def save_plan(
    path: Path,
    alphas: Sequence[Sequence[float]],
    betas: Sequence[Sequence[float]],
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a plan in upstream's format; `about` (how it was found) stands beside it, which upstream ignores."""
    content = {"alphas": np.asarray(alphas).tolist(), "betas": np.asarray(betas).tolist()}
    path.write_text(json.dumps({**content, **({"about": dict(about)} if about else {})}) + "\n")
