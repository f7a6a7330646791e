"""MoA gives each head its own sliding window, chosen offline so that the model loses least.

What it is  head h keeps the first block and a window that grows with the context N; the two together span alpha_h
            + beta_h * N tokens. The rules (alpha, beta) of all heads are in a plan file, which is searched for one
            model (seerbench/search/moa.py)
Paper       arXiv:2406.14909, sections 3 and 4
Upstream    thu-nics/MoA (MIT), read at e224fe3e; its plan files have the same format, {"alphas": [[head, ...],
            ...], "betas": ...}
Fidelity    our port. As upstream, tested on hand-made numbers: the rules without a requested sparsity, and the
            run-time mask, with its reserve for 1024 generated tokens. Ported: the profile by the gradient of the
            loss; elastic rules, at most two of them per layer; one objective per length, each in turn the one that
            is minimised; a KV density that counts the first block; bounds from 0.9 to 1 of a half at each length
            and at an extension length; Pareto plans, of which the one with the lowest validation loss is taken.
            Departures: a rule costs what its run-time mask hides, where upstream's search mask has neither the
            reserve nor the sink within the span. HiGHS solves the programs over generated columns, and those with
            ceilings not to the optimum (upstream: Gurobi). Objectives are bounded above (upstream: also below).
            The profile uses the model's own greedy continuations of the preset's text (upstream: its summaries of
            MultiNews). Plans are compared on one validation window first, and the best six on all. Key/value heads
            are not copied: rules belong to query heads. Lengths, blocks and grid steps scale with the preset
Kernel      ours skips blocks. Upstream's kernel loads every key tile and leaves out arithmetic only, which is why
            MoA is slower than dense attention in the paper's Table 4. The times of `moa` show what a plan can
            give, not what upstream's code gives
Sparsity    SeerAttention's tables say 0.35 for MoA. This is MoA's default KV density of 0.5 (mean span over
            context) converted to attention area; heads that differ give 0.33 to 0.43, equal heads would give 0.25.
            Without a requested sparsity a plan is bound to that KV density. A requested sparsity is this project's
            extension, above all near 90%: upstream's shortest window is 12.5% of the context, and its bounds are
            those of a half. It bounds the area, at most two points below the request. Spans then leave no room for
            generated tokens and may be parts of a block; the grid has finer rules and StreamingLLM's windows of the
            same budget; and plans with one rule for all heads are validated too. A plan whose mean over the layers
            is more than two points from the request at some context is refused there
Timed       plan (making the lists from the rules) and attend (our block-sparse kernel)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.problem import LayerContext
from seerbench.core.top_k import require_budget
from seerbench.errors import MaskError, ModelError, Refused
from seerbench.methods.protocol import BlockSparse
from seerbench.methods.registry import register
from seerbench.reading import read_json

# Blocks of room in every span: upstream plans for 1024 tokens to be generated, and its blocks have 64 tokens.
RESERVED_BLOCKS = 16
CURE = "make it with `seerbench profile PRESET MODEL`, or give another file"
# Blocks of the shortest span: the sink and the diagonal.
MIN_SPAN_BLOCKS = 2
ROUNDING = 1e-9  # a span that is this close below a whole number of blocks is that number

# The alphas or the betas of a layer's rules, by head.
Rules: TypeAlias = "Sequence[float] | np.ndarray"


@register("moa", cites="arXiv:2406.14909", fidelity="our port, searched for the model; on our kernel, which skips")
class MoA(BlockSparse):
    """A mixture of sliding windows, one growing span per head, searched offline."""

    takes_last_rows = True

    def __init__(self, plan: Path | str, sparsity: float | None = None, block: int = 64) -> None:
        """Make the method from a plan file.

        Args:
            plan: the file, in the format of `load_plan`.
            sparsity: the sparsity that the plan was searched for; None if it was searched at MoA's KV density.
            block: tokens per block.

        Raises:
            ModelError: the file cannot be read, or is no plan of MoA.
        """
        self.sparsity, self.block = sparsity, block
        self.alphas, self.betas = load_plan(plan)
        self.configuration, self.model_layers = Path(plan).stem, len(self.alphas)
        self._density_at: dict[tuple[int, int], float] = {}  # of all layers, by (tokens, dense rows)

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        if layer.index >= len(self.alphas) or len(self.alphas[layer.index]) != q.shape[1]:
            shape = f"{len(self.alphas)} layers of {len(self.alphas[0])} heads"
            heads = f"layer {layer.index} has {q.shape[1]} heads"
            raise Refused(f"the plan {self.configuration} is for {shape}, and {heads}; it is of another model")
        tokens = q.shape[2]
        if self.sparsity is not None:
            why = f"so much is the mean over the layers of the plan {self.configuration} at {tokens} tokens"
            require_budget(self.density_at(tokens), self.sparsity, why)
        return windows_and_sink(self._windows(tokens, layer.index), q.shape[0], tokens, self.block, q.device)

    def density_at(self, tokens: int) -> float:
        """Return the share of the causal blocks that all layers together keep at a context of N tokens.

        It is computed once per context, so it does not count in the time of a plan.
        """
        key = tokens, self.last_rows_dense
        if key not in self._density_at:
            layers = [block_density(self._windows(tokens, index)) for index in range(len(self.alphas))]
            self._density_at[key] = float(np.mean(layers))
        return self._density_at[key]

    def _windows(self, tokens: int, layer: int) -> np.ndarray:
        rules = self.alphas[layer], self.betas[layer]
        return window_blocks(*rules, tokens, self.block, self.sparsity, self.last_rows_dense)


def window_blocks(
    alphas: Rules,
    betas: Rules,
    tokens: int,
    block: int,
    sparsity: float | None = None,
    last_rows_dense: int = 0,
) -> np.ndarray:
    """Return how many of its nearest blocks each row of each head keeps beside the first one, int [Hq, n].

    This function decides what a plan keeps when it runs, what the search charges for it, and what its budget is.
    The diagonal block counts as part of the window, the first block does not.

    Without a sparsity the spans are upstream's: they have room for RESERVED_BLOCKS of generated tokens, and a part
    of a block counts as a block. With one there is no such room, and a span of x blocks buys as many blocks as x
    (not rounded) blocks per row would be, xn - x(x - 1) / 2: every row keeps the whole blocks of x, and the last
    rows one block more, as in the top-k rule (core/top_k.py).

    Args:
        alphas: the constant part of each span, in tokens; a span includes the first block.
        betas: the part of each span that grows, as a share of the context.
        tokens: N, the context.
        block: tokens per block.
        sparsity: the requested share of skipped causal blocks, or None.
        last_rows_dense: number of block rows at the end that keep every block.
    """
    n = block_count(tokens, block)
    sparse = max(0, n - last_rows_dense)
    row = np.arange(n)
    if sparsity is None:
        reach = tokens + RESERVED_BLOCKS * block
        span = np.minimum(np.trunc(np.asarray(alphas) + np.asarray(betas) * reach), reach) / block
        whole = np.ceil(np.maximum(span, MIN_SPAN_BLOCKS))
        longer = np.zeros_like(whole)
    else:
        span = (np.asarray(alphas) + np.asarray(betas) * tokens) / block
        span = np.clip(span, MIN_SPAN_BLOCKS, max(MIN_SPAN_BLOCKS, sparse))
        whole = np.floor(span + ROUNDING)
        longer = np.rint(_triangle(span, sparse) - _triangle(whole, sparse))
    window = whole[..., None] - 1 + (row >= sparse - longer[..., None])
    return np.where(row < sparse, window, n).astype(int)


def _triangle(k: np.ndarray | float, rows: int) -> np.ndarray | float:
    """Return the number of blocks in `rows` causal rows of at most k blocks each; k need not be whole."""
    return k * rows - k * (k - 1) / 2


def span_of(blocks: float, rows: int) -> float:
    """Return the span x with which causal rows keep a number of blocks together: the inverse of `_triangle`."""
    middle = 2 * rows + 1
    return (middle - math.sqrt(max(0.0, middle**2 - 8 * blocks))) / 2


def windows_and_sink(
    windows: np.ndarray, batch: int, tokens: int, block: int, device: torch.device | str = "cpu"
) -> BlockMask:
    """Return the mask of block 0 and each row's nearest blocks, made as lists without an n x n map.

    Args:
        windows: number of nearest blocks of each row of each head, int [Hq, n].
        batch: B.
        tokens: N.
        block: tokens per block.
        device: where the lists are made.

    Raises:
        MaskError: a row has no nearest block, not even that of the diagonal.
    """
    if np.min(windows) < 1:
        raise MaskError(f"each row keeps at least its nearest block, not {np.min(windows)}")
    n = block_count(tokens, block)
    row = torch.arange(n, device=device)
    start = (row - torch.as_tensor(windows, device=device) + 1).clamp_min(0)  # [Hq, n]: first block of the window
    counts = row - start + 1 + (start > 0).int()
    place = torch.arange(min(n, int(windows.max()) + 1), device=device)
    listed = torch.where(start[..., None] > 0, start[..., None] + place - 1, place)
    listed[..., 0] = 0
    listed = torch.where(place < counts[..., None], listed, 0)
    shape = (batch, *listed.shape)
    return BlockMask.unchecked(
        counts.int().expand(shape[:-1]).contiguous(), listed.int().expand(shape).contiguous(), tokens, block, block
    )


def block_density(windows: np.ndarray) -> np.ndarray:
    """Return the share of the causal blocks that the first block and the windows [..., n] of n rows keep: [...]."""
    row = np.arange(windows.shape[-1])
    return np.minimum(row + 1, windows + 1).sum(-1) / (row + 1).sum()


def load_plan(path: Path | str) -> tuple[list[list[float]], list[list[float]]]:
    """Read a plan file in upstream's format.

    Returns:
        (alphas, betas), each by layer and head.

    Raises:
        ModelError: the file cannot be read, or is no plan of MoA.
    """
    content = read_json(path, ModelError, CURE)
    missing = [key for key in ("alphas", "betas") if key not in content]
    if missing:
        raise ModelError(f"{path} is no plan of MoA: it has no {' and no '.join(missing)}; {CURE}")
    try:
        alphas, betas = (np.asarray(content[key], dtype=np.float64) for key in ("alphas", "betas"))
    except (TypeError, ValueError):
        alphas = betas = np.empty(0)
    if alphas.ndim != 2 or alphas.shape != betas.shape or not (np.isfinite(alphas) & np.isfinite(betas)).all():
        raise ModelError(
            f"{path} is no plan of MoA: alphas and betas have one finite number per layer and head; {CURE}"
        )
    return alphas.tolist(), betas.tolist()


def save_plan(
    path: Path,
    alphas: Sequence[Sequence[float]],
    betas: Sequence[Sequence[float]],
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a plan in upstream's format.

    Args:
        path: the file to write.
        alphas: constant parts of the spans, by layer and head.
        betas: growing parts of the spans, by layer and head.
        provenance: how the plan was found, written under the key "about", which upstream ignores.
    """
    content: dict[str, Any] = {"alphas": np.asarray(alphas).tolist(), "betas": np.asarray(betas).tolist()}
    content |= {"about": dict(provenance)} if provenance else {}
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
