"""MInference: each head has a pattern that is found offline; which keys it reads is estimated online.

What it is  a head has one of three patterns. Vertical-slash keeps the key columns and the diagonals to which the
            last 64 queries attend most. A-shape keeps the first keys and a window. Block-sparse keeps the top-k
            blocks of mean-pooled q and k. `minference` reads patterns and budgets from one of upstream's two
            configurations for Llama-3.1-8B-Instruct: v2, its default since 2024-09, with (512, 2048) for every
            head, or v1, a mix of six budgets. It also reads a file in upstream's format, such as one that the
            search for another model wrote
Paper       arXiv:2407.02490, section 3, algorithms 1 to 3, appendix C
Upstream    microsoft/MInference (MIT), read at fb56c917 (after v0.1.6)
Fidelity    `minference`: our port; its estimation and index conversion equal upstream's entry for entry (tiles at
            unaligned tokens, gathered columns: kernels/vertical_slash/). Departures: one launch for all heads,
            keys and values of a group are not repeated, any batch (upstream: head by head, batch 1). A-shape and
            block-sparse heads run through the same tiles, so a window ends on whole tiles, and a block-sparse head
            keeps the diagonal block beside its best ones (upstream: only where it is among them). Equal scores rank
            by their index: of the 100 diagonals and 30 columns that upstream always ranks first, a smaller budget
            keeps the nearest diagonals and the first columns (upstream: those that topk returns, in no order). If
            blocks are not 64, the default budgets, the entries that are always kept and the tiles scale with the
            block. With a requested sparsity, a bisection finds one factor on all budgets of a layer, and a request
            that whole tiles and the entries that are always kept cannot meet is refused
            `minference-aligned`: simplified. Columns and diagonals are rounded outwards to whole blocks and run on
            our block-sparse kernel, with one pattern for all heads whose budgets scale together to the requested
            sparsity; the diagonal block is always kept
            `minference-upstream`: upstream's kernels and conversion, unmodified, on our (equal) estimates
Search      seerbench/search/minference.py follows the paper: the candidates of its table 7, scored by the attention
            output. Upstream's code has other candidates, scores by the attention mass that they keep, and relabels
            winners: an A-shape becomes vertical-slash (100, 800), block-sparse becomes vertical-slash (1000, 6096)
Compared    with upstream's estimate and its conversion, written as loops (tests/baselines/test_minference.py,
            tests/kernels/test_vertical_slash.py); upstream's package was not run
Timed       plan (estimation, ranking, conversion) and attend
"""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from seerbench.baselines.minference.estimate import (
    pattern_tiles,
    ranks,
    select_vertical_slash,
    vertical_slash_scores,
    with_dense_rows,
)
from seerbench.baselines.minference.patterns import (
    DEFAULT_PATTERN,
    SLASH,
    V1_FILE,
    VERTICAL,
    Pattern,
    at_block,
    load_patterns,
    scaled_budgets,
)
from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.core.top_k import budget_limit, nearest_by_bisection, require_budget, top_k_density
from seerbench.errors import Refused
from seerbench.kernels.vertical_slash import api as vertical_slash
from seerbench.kernels.vertical_slash.api import vertical_slash_tiles
from seerbench.kernels.vertical_slash.tile_mask import TileMask
from seerbench.methods.block_selection import mask_from_flags, select_budget
from seerbench.methods.protocol import BlockSparse, Method, Plan, PlanT
from seerbench.methods.registry import register

# Smallest factor on the budgets that is tried for a requested sparsity, as a power of two: with it every budget is
# at its least.
LOWEST_POWER = -16


class _Patterned(Method[PlanT]):
    """A method that follows the patterns of a configuration: the port and the upstream package."""

    block: int

    def __init__(self, patterns: Path | str | None = None, block: int = 64, sparsity: float | None = None) -> None:
        """Make the method.

        Args:
            patterns: a file that `load_patterns` reads; "v1", upstream's first configuration; None or "v2" for
                budgets of (512, 2048) in every head, at blocks of 64.
            block: tokens per tile.
            sparsity: None keeps to the budgets, whatever sparsity they give on an input. A number multiplies all
                budgets of a layer by one factor, which is searched for each input by bisection, for accuracy at
                equal sparsity. The search is part of the plan, so timings request no sparsity.

        Raises:
            ModelError: the file cannot be read, or is no configuration of MInference.
        """
        self.block, self.sparsity, self.factor = block, sparsity, 1.0
        self.layers: list[dict[int, Pattern]] | None = None
        if patterns is None or patterns == "v2":
            self.configuration = f"v2 ({VERTICAL}, {SLASH})"
        elif patterns == "v1":
            with as_file(files("seerbench.baselines") / "configs" / V1_FILE) as file:
                self.layers, self.configuration = load_patterns(file), "v1 (mix)"
        else:
            self.layers, self.configuration = load_patterns(patterns), Path(patterns).stem
        self.model_layers = None if self.layers is None else len(self.layers)

    def patterns(self, layer: int, heads: int) -> list[Pattern]:
        """Return the pattern of each head of a layer.

        Raises:
            Refused: the file is of another model: it has no such layer, or more heads than `heads`.
        """
        if self.layers is None:
            default = Pattern("vertical_and_slash", at_block(VERTICAL, self.block), at_block(SLASH, self.block))
            return [default] * heads
        if layer >= len(self.layers) or max(self.layers[layer], default=0) >= heads:
            shape = f"{len(self.layers)} layers of at least {1 + max(map(max, self.layers))} heads"
            here = f"layer {layer} has {heads} heads"
            raise Refused(
                f"the patterns {self.configuration} are for {shape}, and {here}; they are of another model"
            )
        return [self.layers[layer].get(head, DEFAULT_PATTERN) for head in range(heads)]


@register(
    "minference",
    cites="arXiv:2407.02490",
    fidelity="our port: unaligned tiles, gathered columns, both official configurations or a search",
)
class MInference(_Patterned[TileMask]):
    """Vertical-slash, A-shape and block-sparse heads, estimated online, on unaligned tiles and gathered columns."""

    takes_last_rows = True

    def implementation(self, problem: AttentionProblem) -> str:
        return vertical_slash.implementation(problem)

    def refuses(self, problem: AttentionProblem) -> str | None:
        return vertical_slash.refuses(problem)

    def with_threshold_for(self, q: Tensor, k: Tensor, layer: LayerContext) -> MInference:
        if self.sparsity is None:
            return self
        scaled = copy.copy(self)
        scaled.sparsity, scaled.factor = None, self._factor_for(self.sparsity, q, k, layer)
        return scaled

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> TileMask:
        factor = self.factor if self.sparsity is None else self._factor_for(self.sparsity, q, k, layer)
        return self._tiles(q, k, layer, factor)

    def _tiles(self, q: Tensor, k: Tensor, layer: LayerContext, factor: float) -> TileMask:
        patterns = self.patterns(layer.index, q.shape[1])
        tiles = pattern_tiles(q, k, patterns if factor == 1 else scaled_budgets(patterns, factor), self.block)
        return with_dense_rows(tiles, self.last_rows_dense) if self.last_rows_dense else tiles

    def _factor_for(self, sparsity: float, q: Tensor, k: Tensor, layer: LayerContext) -> float:
        """Return the factor on all budgets whose density is the nearest to the top-k rule's, by bisection.

        Raises:
            Refused: its density is not near enough to the request.
        """
        tokens = q.shape[2]
        if sparsity == 0:
            return float(tokens)  # every head keeps everything
        n = block_count(tokens, self.block)
        budget = top_k_density(n, sparsity, self.last_rows_dense)
        power, density = nearest_by_bisection(
            lambda power: self._tiles(q, k, layer, 2**power).density(), budget, LOWEST_POWER, math.log2(tokens)
        )
        why = f"whole tiles, and entries that are always kept, allow no nearer plan at {tokens} tokens"
        require_budget(density, sparsity, why, n)
        return 2.0**power

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: TileMask) -> Tensor:
        return vertical_slash.tile_attention(q, k, v, plan)


@register(
    "minference-aligned",
    cites="arXiv:2407.02490",
    fidelity="simplified: the same estimate rounded outwards to blocks",
)
class MInferenceAligned(BlockSparse):
    """Vertical-slash sparsity estimated from the last queries, rounded outwards to blocks."""

    takes_last_rows = True

    def __init__(self, sparsity: float | None = None, block: int = 64, scale: float = 1.0) -> None:
        """Make the method.

        Args:
            sparsity: requested share of causal blocks to skip, in place of a scale.
            block: tokens per block.
            scale: factor on the budgets (512, 2048).
        """
        self.sparsity, self.block, self.scale = sparsity, block, scale
        self.configuration = f"v2 ({VERTICAL}, {SLASH})"

    def with_threshold_for(self, q: Tensor, k: Tensor, layer: LayerContext) -> MInferenceAligned:
        if self.sparsity is None:
            return self
        limit = float(budget_limit(self._cost(q, k), self.sparsity, self.last_rows_dense).max())
        found = copy.copy(self)
        found.sparsity, found.scale = None, math.nextafter(max(limit, 0.0), math.inf)
        return found

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        cost, tokens = self._cost(q, k), q.shape[2]
        if self.sparsity is not None:
            return select_budget(cost, self.sparsity, tokens, self.block, self.last_rows_dense)
        cost[:, :, max(0, cost.shape[-1] - self.last_rows_dense) :] = -torch.inf
        return mask_from_flags(cost.double() < self.scale, tokens, self.block, self.block)

    def _cost(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the scale of the budgets above which each block is kept, fp32 [B, Hq, n, n]."""
        block, n = self.block, block_count(q.shape[2], self.block)
        columns, diagonals = vertical_slash_scores(q, k, block / 64)
        # A rank is divided by its budget: at scale r the head keeps quotients below r in both lists.
        return torch.minimum(
            _best_of_blocks(ranks(columns) / at_block(VERTICAL, block), n, block)[..., None, :],
            _slash_cost(ranks(diagonals) / at_block(SLASH, block), n, block),
        )


@dataclass(frozen=True)
class UpstreamPlan(Plan):
    """The columns and diagonals of each head, as upstream's kernel takes them.

    Attributes:
        picks: for each head, its columns and its diagonals, int32 [1, 1, count] each.
        columns: flags of the columns, bool [B, Hq, N].
        diagonals: flags of the diagonals, bool [B, Hq, N].
    """

    picks: list[list[Tensor]]
    columns: Tensor
    diagonals: Tensor

    def density(self) -> float:
        # The density is that of our conversion to tiles, which equals upstream's.
        return vertical_slash_tiles(self.columns, self.diagonals).density()


@register(
    "minference-upstream",
    cites="arXiv:2407.02490",
    needs=("cuda", "minference"),
    fidelity="upstream package's kernels, where installed; not yet run",
)
class MInferenceUpstream(_Patterned[UpstreamPlan]):
    """MInference's own kernels, where its package is installed; vertical-slash heads only."""

    def implementation(self, problem: AttentionProblem) -> str:
        return "minference"

    def refuses(self, problem: AttentionProblem) -> str | None:
        if problem.device != "cuda" or problem.dtype not in ("float16", "bfloat16"):
            return "MInference's kernels run on a GPU in float16 and bfloat16"
        if problem.batch != 1:
            return f"MInference takes batch 1, not {problem.batch}"
        if importlib.util.find_spec("minference") is None:
            return "minference is not installed; pip install minference"
        for other in ("sgl_kernel", "vllm_flash_attn", "vllm"):
            if importlib.util.find_spec(other):
                return f"with {other} installed MInference silently runs that package's kernel under its own name"
        try:
            _upstream_kernel()
        except ImportError as error:  # for example 0.1.6 with transformers 5: "No module named 'kivi_gemv'"
            return f"minference is installed and cannot be imported: {error}"
        return None

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> UpstreamPlan:
        patterns = self.patterns(layer.index, q.shape[1])
        if any(pattern.kind != "vertical_and_slash" for pattern in patterns):
            raise ValueError("minference-upstream runs vertical-slash heads only; take minference for this file")
        columns, diagonals = select_vertical_slash(q, k, patterns, self.block)
        picks = [
            [chosen[0, head].nonzero()[:, 0].int()[None, None] for chosen in (columns, diagonals)]
            for head in range(q.shape[1])
        ]
        plan = UpstreamPlan(picks, columns, diagonals)
        if self.sparsity is not None:
            n = block_count(q.shape[2], self.block)
            require_budget(plan.density(), self.sparsity, "upstream's package has the budgets of its patterns", n)
        return plan

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: UpstreamPlan) -> Tensor:
        group, kernel = q.shape[1] // k.shape[1], _upstream_kernel()
        heads = [  # one launch per head, as in upstream's forward pass
            kernel(q[:, h : h + 1], k[:, h // group, None], v[:, h // group, None], *plan.picks[h])
            for h in range(q.shape[1])
        ]
        return torch.cat(heads, 1)


def _upstream_kernel() -> Callable[..., Tensor]:
    # Imported here because the package is optional.
    from minference.ops.pit_sparse_flash_attention_v2 import vertical_slash_sparse_attention

    return vertical_slash_sparse_attention


def _best_of_blocks(places: Tensor, n: int, block: int) -> Tensor:
    """Return the best rank in each block, [B, H, n], for ranks of columns or diagonals [B, H, N]."""
    padded = F.pad(places, (0, n * block - places.shape[-1]), value=torch.inf)
    return padded.unflatten(-1, (n, block)).amin(-1)


def _slash_cost(places: Tensor, n: int, block: int) -> Tensor:
    """Return the best rank of the diagonals that cross each block, [B, H, n, n], for their ranks [B, H, N]."""
    best = _best_of_blocks(places, n, block)
    # Block (I, J) is crossed by offsets (I-J) * block - (block-1) .. (I-J) * block + block-1. The lower part
    # belongs to the previous group of `block` diagonals (without that group's offset 0).
    inner = F.pad(places, (0, n * block - places.shape[-1]), value=torch.inf).unflatten(-1, (n, block))
    lower = inner[..., 1:].amin(-1) if block > 1 else torch.full_like(best, torch.inf)
    crossing = torch.minimum(best, F.pad(lower, (1, 0), value=torch.inf)[..., :n])
    offset = torch.arange(n, device=places.device)
    offset = (offset[:, None] - offset[None, :]).clamp_min(0)
    return crossing[..., offset]
