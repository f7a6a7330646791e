"""MInference: a pattern for each head found offline, its indices estimated online.

What      per head one of three patterns. Vertical-slash: the key columns and the diagonals that the last 64
          queries attend to most. A-shape: first keys and a window. Block-sparse: top-k blocks of mean-pooled
          q and k. `minference` takes a head's pattern and budget from one of upstream's two configurations for
          Llama-3.1-8B-Instruct, v2 (its default since 2024-09: (512, 2048) for every head) or v1 (a mix of six
          budgets), from a search for the model at hand (`search_patterns`), or from a file in upstream's format
Source    arXiv:2407.02490, section 3, algorithms 1 to 3, appendix C
Upstream  microsoft/MInference (MIT), read at fb56c917 (after v0.1.6)
Fidelity  `minference`: our port, the estimation and the index conversion entry for entry (tiles at unaligned
          tokens, gathered columns: kernels/vertical_slash.py). Departures: all heads in one launch, keys and
          values of a group are not repeated, any batch (upstream: head by head, batch 1); A-shape and
          block-sparse heads run through the same tiles, so that a window ends on whole tiles; with blocks that
          are not 64 the budgets of the default, the forced runs and the tiles scale with the block
          `minference-aligned`: simplified. Columns and diagonals rounded outwards to whole blocks on our
          block-sparse kernel; one pattern for all heads, its budgets scaled together to the requested sparsity
          `minference-upstream`: upstream's kernels and conversion, unmodified, on our (equal) estimates
Timed     plan (estimation, ranking, conversion) and attend
"""

from __future__ import annotations

import copy
import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from seerbench.attention import BlockMask, BlockSparse, Case, Layer, block_count, grouped_products, repeat_kv
from seerbench.gate import budget_limit, select_budget, top_k_density
from seerbench.kernels.vertical_slash import TileMask, vertical_slash_tiles
from seerbench.registry import register

LAST_QUERIES = 64  # queries that vote (upstream last_q)
FORCED_COLUMNS, FORCED_DIAGONALS = 30, 100  # upstream sets these scores to infinity, at blocks of 64
LEAST_COLUMNS, LEAST_DIAGONALS = 30, 50  # and never takes fewer
BISECTIONS = 14  # of the factor on the budgets, where a sparsity is asked for
FITS = 8  # of a candidate's factor in the offline search, between 1/32 and 32: to 3%
VERTICAL, SLASH = 512, 2048  # upstream config Llama_3.1_8B_Instruct_128k_..._v2.json, every head
V1 = "minference-llama-3.1-8b-v1.json"  # upstream's first file for that model, its scores rounded
KINDS = ("vertical_and_slash", "stream_llm", "block_sparse")  # the names in upstream's files


@dataclass(frozen=True)
class Pattern:
    """What a head does. first, second: columns, diagonals; or first keys, window; or blocks, unused."""

    kind: str
    first: int
    second: int
    score: float = 0.0


ABSENT = Pattern("vertical_and_slash", 1000, 6096)  # upstream's, for a head that its file does not name


def load_patterns(path: Path | str) -> list[dict[int, Pattern]]:
    """Upstream's file: a list over layers of {"head": [kind, first, second, score]}; ValueError for another."""
    content = json.loads(Path(path).read_text())
    if not isinstance(content, list) or not all(isinstance(layer, dict) for layer in content):
        raise ValueError(f"{path} is no MInference configuration: expected a list of objects over heads")
    layers = []
    for number, layer in enumerate(content):
        heads = {}
        for head, entry in layer.items():
            if len(entry) < 3 or entry[0] not in KINDS:
                raise ValueError(
                    f"{path}: layer {number}, head {head}: expected [{' | '.join(KINDS)}, int, int, score]"
                )
            heads[int(head)] = Pattern(entry[0], int(entry[1]), int(entry[2]), float((*entry, 0.0)[3]))
        layers.append(heads)
    return layers


def save_patterns(path: Path, layers: Sequence[Sequence[Pattern]]) -> None:
    """Patterns of each layer and head in upstream's format."""
    content = [
        {str(head): [p.kind, p.first, p.second, p.score] for head, p in enumerate(layer)} for layer in layers
    ]
    path.write_text(json.dumps(content, indent=1) + "\n")


class _Patterns:
    """What the port and the upstream package share: whose patterns they follow."""

    def __init__(self, patterns: Path | str | None = None, block: int = 64, sparsity: float | None = None) -> None:
        """patterns: a JSON file of `load_patterns`, or v1; None or v2 for (512, 2048) at blocks of 64.

        sparsity: None follows the budgets, whatever they come to on an input. A number scales all budgets of a
        layer by one factor, found anew for each input by bisection: for accuracy at equal sparsity. The
        search is part of the plan, so timings give no sparsity.
        """
        self.block, self.sparsity, self.factor = block, sparsity, 1.0
        if patterns in (None, "v2"):
            self.layers, self.source = None, f"v2 ({VERTICAL}, {SLASH})"
        elif patterns == "v1":
            with as_file(files("seerbench.baselines") / "configs" / V1) as file:
                self.layers, self.source = load_patterns(file), "v1 (mix)"
        else:
            self.layers, self.source = load_patterns(patterns), Path(patterns).stem

    def patterns(self, layer: int, heads: int) -> list[Pattern]:
        """One layer's patterns by head."""
        if self.layers is None:
            default = Pattern("vertical_and_slash", _scaled(VERTICAL, self.block), _scaled(SLASH, self.block))
            return [default] * heads
        if layer >= len(self.layers):
            raise ValueError(f"the configuration {self.source} has {len(self.layers)} layers, no layer {layer}")
        return [self.layers[layer].get(head, ABSENT) for head in range(heads)]


@register(
    "minference",
    cites="arXiv:2407.02490",
    fidelity="our port: unaligned tiles, gathered columns, both official configurations or a search",
)
class MInference(_Patterns):
    """Vertical-slash, A-shape and block-sparse heads, estimated online, on unaligned tiles and gathered columns."""

    def implementation(self, case: Case) -> str:
        from seerbench.kernels import vertical_slash

        return vertical_slash.implementation(case)

    def refuses(self, case: Case) -> str | None:
        from seerbench.kernels import vertical_slash

        return vertical_slash.refuses(case)

    def settled(self, q: Tensor, k: Tensor, layer: Layer) -> MInference:
        """The same with its budgets scaled as a requested sparsity comes to on this input: what a timing runs."""
        fixed = copy.copy(self)
        fixed.sparsity, fixed.factor = None, self._factor(q, k, layer)
        return fixed

    def plan(self, q: Tensor, k: Tensor, layer: Layer) -> TileMask:
        factor = self.factor if self.sparsity is None else self._factor(q, k, layer)
        return self._tiles(q, k, layer, factor)

    def _tiles(self, q: Tensor, k: Tensor, layer: Layer, factor: float) -> TileMask:
        patterns = self.patterns(layer.index, q.shape[1])
        return pattern_tiles(q, k, patterns if factor == 1 else _times(patterns, factor), self.block)

    def _factor(self, q: Tensor, k: Tensor, layer: Layer) -> float:
        """The largest factor on all budgets whose tiles are at most as many as the top-k rule's blocks."""
        low, high = 0.0, float(q.shape[2])  # at the upper end every head keeps all
        if self.sparsity == 0:
            return high
        budget = top_k_density(block_count(q.shape[2], self.block), self.sparsity)
        for _ in range(BISECTIONS):
            factor = (low * high) ** 0.5 if low else high / 16
            fits = self._tiles(q, k, layer, factor).density() <= budget
            low, high = (factor, high) if fits else (low, factor)
        return low

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: TileMask) -> Tensor:
        from seerbench.kernels.vertical_slash import tile_attention

        return tile_attention(q, k, v, plan)


@register(
    "minference-aligned",
    cites="arXiv:2407.02490",
    fidelity="simplified: the same estimate rounded outwards to blocks",
)
class MInferenceAligned(BlockSparse):
    """Vertical-slash sparsity estimated from the last queries, rounded outwards to blocks."""

    def __init__(self, sparsity: float | None = None, block: int = 64, scale: float = 1.0) -> None:
        """sparsity: None keeps what the budgets (512, 2048) times `scale` touch; a number finds the scale."""
        self.sparsity, self.block, self.scale = sparsity, block, scale
        self.source = f"v2 ({VERTICAL}, {SLASH})"

    def settled(self, q: Tensor, k: Tensor, layer: Layer) -> MInferenceAligned:
        """The same at the scale that a requested sparsity comes to on this input: what a timing runs."""
        limit = float(budget_limit(self._cost(q, k), self.sparsity).max())
        return MInferenceAligned(block=self.block, scale=math.nextafter(max(limit, 0.0), math.inf))

    def plan(self, q: Tensor, k: Tensor, layer: Layer) -> BlockMask:
        cost = self._cost(q, k)
        if self.sparsity is None:
            return BlockMask.from_dense(cost.double() < self.scale, q.shape[2], self.block, self.block)
        return select_budget(cost, self.sparsity, q.shape[2], self.block)

    def _cost(self, q: Tensor, k: Tensor) -> Tensor:
        """The scale of the budgets from which on a block is touched, [B, Hq, n, n]."""
        block, n = self.block, block_count(q.shape[2], self.block)
        columns, diagonals = vertical_slash_scores(q, k, block / 64)
        # A rank in units of its budget: at scale r the head keeps ranks below r in both lists.
        return torch.minimum(
            _best_of_blocks(_ranks(columns) / _scaled(VERTICAL, block), n, block)[..., None, :],
            _slash_cost(_ranks(diagonals) / _scaled(SLASH, block), n, block),
        )


@register(
    "minference-upstream",
    cites="arXiv:2407.02490",
    needs=("cuda", "minference"),
    fidelity="upstream package's kernels, where installed; not yet run",
)
class MInferenceUpstream(_Patterns):
    """MInference's own kernels, where its package is installed; vertical-slash heads only."""

    def implementation(self, case: Case) -> str:
        return "minference"

    def refuses(self, case: Case) -> str | None:
        if case.device != "cuda" or case.dtype not in ("float16", "bfloat16"):
            return "MInference's kernels run on a GPU in float16 and bfloat16"
        if case.batch != 1:
            return f"MInference takes batch 1, not {case.batch}"
        if importlib.util.find_spec("minference") is None:
            return "minference is not installed; pip install minference"
        for other in ("sgl_kernel", "vllm_flash_attn", "vllm"):
            if importlib.util.find_spec(other):
                return f"with {other} installed MInference silently runs that package's kernel under its own name"
        try:
            _upstream_kernel()
        except ImportError as error:  # 0.1.6 with transformers 5: "No module named 'kivi_gemv'"
            return f"minference is installed and cannot be imported: {error}"
        return None

    def plan(self, q: Tensor, k: Tensor, layer: Layer) -> UpstreamPlan:
        patterns = self.patterns(layer.index, q.shape[1])
        if any(pattern.kind != "vertical_and_slash" for pattern in patterns):
            raise ValueError("minference-upstream runs vertical-slash heads only; take minference for this file")
        columns, diagonals = select_vertical_slash(q, k, patterns, self.block)
        picks = [
            [chosen[0, head].nonzero()[:, 0].int()[None, None] for chosen in (columns, diagonals)]
            for head in range(q.shape[1])
        ]
        return UpstreamPlan(picks, columns, diagonals)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: UpstreamPlan) -> Tensor:
        group, kernel = q.shape[1] // k.shape[1], _upstream_kernel()
        heads = [  # one launch a head, as upstream's forward has it
            kernel(q[:, h : h + 1], k[:, h // group, None], v[:, h // group, None], *plan.picks[h])
            for h in range(q.shape[1])
        ]
        return torch.cat(heads, 1)


def _upstream_kernel() -> Callable[..., Tensor]:
    from minference.ops.pit_sparse_flash_attention_v2 import vertical_slash_sparse_attention

    return vertical_slash_sparse_attention


@dataclass(frozen=True)
class UpstreamPlan:
    """Columns and diagonals of each head as upstream takes them: int32 [1, 1, count] a head."""

    picks: list[list[Tensor]]
    columns: Tensor
    diagonals: Tensor

    def density(self) -> float:
        """By our conversion, which is upstream's."""
        return vertical_slash_tiles(self.columns, self.diagonals).density()


def _times(patterns: Sequence[Pattern], factor: float) -> list[Pattern]:
    def times(count: int) -> int:
        return max(1, round(count * factor))

    return [replace(p, first=times(p.first), second=times(p.second)) for p in patterns]


# Online estimation


def pattern_tiles(q: Tensor, k: Tensor, patterns: Sequence[Pattern], block: int = 64) -> TileMask:
    """The plan of one layer: q [B, Hq, N, D], k [B, Hk, N, D] and a pattern a head."""
    if len(patterns) != q.shape[1]:
        raise ValueError(f"{len(patterns)} patterns for {q.shape[1]} heads")
    slashed = vertical_slash_tiles(*select_vertical_slash(q, k, patterns, block), block)
    listed = [h for h, pattern in enumerate(patterns) if pattern.kind != "vertical_and_slash"]
    if not listed:
        return slashed
    kept = torch.stack(
        [_static_blocks(q, k, h, patterns[h], block) for h in range(q.shape[1])], 1
    )  # rows of vertical-slash heads are not used
    blocks = BlockMask.from_dense(kept, q.shape[2], block, block)
    other = torch.tensor([h in listed for h in range(q.shape[1])], device=q.device)[None, :, None]
    width = max(slashed.tile_starts.shape[-1], blocks.kv_indices.shape[-1])
    ours, theirs = (
        F.pad(lists, (0, width - lists.shape[-1])) for lists in (slashed.tile_starts, blocks.kv_indices * block)
    )
    return TileMask(
        torch.where(other, blocks.kv_num_blocks, slashed.tile_counts),
        torch.where(other[..., None], theirs, ours),
        slashed.column_counts.masked_fill(other, 0),
        slashed.columns.masked_fill(other[..., None], 0),
        q.shape[2],
        block,
    )


def _static_blocks(q: Tensor, k: Tensor, head: int, pattern: Pattern, block: int) -> Tensor:
    """A-shape or block-sparse head -> kept blocks, bool [B, n, n]; the diagonal alone for other kinds."""
    n, device = block_count(q.shape[2], block), q.device
    rows = torch.arange(n, device=device)
    diagonal = rows[:, None] == rows
    if pattern.kind == "stream_llm":
        near = (rows[:, None] - rows) * block < pattern.second + block - 1
        return ((rows * block < pattern.first) | near).expand(q.shape[0], n, n)
    if pattern.kind != "block_sparse":
        return diagonal.expand(q.shape[0], n, n)
    # Upstream pads the last block with zeros before the mean; the mean over its real tokens ranks better.
    pooled_q, pooled_k = (
        torch.stack([part.float().mean(1) for part in x.split(block, 1)], 1)
        for x in (q[:, head], k[:, head // (q.shape[1] // k.shape[1])])
    )
    scores = (pooled_q @ pooled_k.mT).masked_fill(rows > rows[:, None], -torch.inf)
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., : pattern.first]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True) | diagonal


def select_vertical_slash(
    q: Tensor, k: Tensor, patterns: Sequence[Pattern], block: int = 64
) -> tuple[Tensor, Tensor]:
    """The columns and diagonals of each head, bool [B, Hq, N] each (diagonal 0 alone for other kinds of heads)."""
    budgets = [(p.first, p.second) if p.kind == "vertical_and_slash" else (0, 0) for p in patterns]
    least = torch.tensor([_scaled(LEAST_COLUMNS, block), _scaled(LEAST_DIAGONALS, block)])
    wanted = torch.tensor(budgets)
    wanted = torch.where(wanted > 0, torch.maximum(wanted, least), wanted).to(q.device)
    columns, diagonals = (_ranks(scores) for scores in vertical_slash_scores(q, k, block / 64))
    picked = diagonals < wanted[:, 1, None]
    picked[..., 0] = True
    return columns < wanted[:, 0, None], picked


def vertical_slash_scores(q: Tensor, k: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """q [B, Hq, N, D], k [B, Hk, N, D] -> fp32 scores of the N columns and the N diagonals, [B, Hq, N] each.

    Diagonal d holds the pairs with query - key = d. Forced entries are +inf; `scale` shortens the forced
    runs where smaller blocks stand for the paper's 64 (they would fill a short context's whole budget).
    """
    tokens = q.shape[2]
    last = min(LAST_QUERIES, tokens)
    scores = grouped_products(q[:, :, -last:], k).float() * q.shape[-1] ** -0.5
    rows = torch.arange(tokens - last, tokens, device=q.device)[:, None]
    keys = torch.arange(tokens, device=q.device)[None, :]
    weights = scores.masked_fill_(keys > rows, -torch.inf).softmax(-1)
    columns = weights.sum(-2)
    columns[..., : max(1, round(FORCED_COLUMNS * scale))] = torch.inf
    diagonals = diagonal_sums(weights)
    diagonals[..., : max(1, round(FORCED_DIAGONALS * scale))] = torch.inf
    return columns, diagonals


def diagonal_sums(weights: Tensor) -> Tensor:
    """[B, H, L, N], the last L rows of an N x N map -> its sums over the diagonals 0 .. N - 1, [B, H, N]."""
    last, tokens = weights.shape[-2:]
    # Row i holds diagonal N - 1 - c at key c - (last - 1 - i). With last - 1 zeros to the left that is place c + i:
    # one step further than a row's stride from row to row, so that a sheared view lines the diagonals up.
    padded = F.pad(weights, (last - 1, 0)).contiguous()
    width = padded.shape[-1]
    sheared = padded.as_strided(
        (*padded.shape[:2], last, tokens), (padded.stride(0), padded.stride(1), width + 1, 1)
    )
    return sheared.sum(-2).flip(-1)


def _scaled(count: int, block: int) -> int:
    return max(1, count * block // 64)


def _ranks(scores: Tensor) -> Tensor:
    """Place of each entry in descending order, ties by index: fp32 like scores."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(scores.shape[-1], device=scores.device, dtype=torch.float32)
    return torch.empty_like(scores).scatter_(-1, order, places.expand_as(scores).contiguous())


# Offline search


def candidates(tokens: int) -> list[Pattern]:
    """What the search tries: the paper's table 7, budgets in proportion to its 30k calibration tokens."""
    scale = tokens / 30_720
    paper = [
        ("stream_llm", 1024, 4096),  # first: its cost in the kernel is what the others may spend
        ("vertical_and_slash", 30, 2048),
        ("vertical_and_slash", 100, 1800),
        ("vertical_and_slash", 500, 1500),
        ("vertical_and_slash", 3000, 200),
        ("block_sparse", 100, 1),
    ]
    return [Pattern(kind, max(1, round(a * scale)), max(1, round(b * scale))) for kind, a, b in paper]


def search_patterns(q: Tensor, k: Tensor, v: Tensor, block: int = 64) -> list[Pattern]:
    """The best candidate of each head of one layer, by the output that the kernel really gives.

    q [B, Hq, N, D], k and v [B, Hk, N, D] of the calibration text. Kernel-aware, as the paper's algorithm 1: the
    budgets of a candidate are scaled, head by head, until it executes as many tiles as the A-shape, then it
    runs through the kernel and is scored by what the output keeps, 1 - ||sparse - dense|| / ||dense|| (the
    paper's "recall of the attention output"). Only an upper limit where the forced columns and diagonals cost more.
    """
    from seerbench.kernels.vertical_slash import tile_attention

    heads = q.shape[1]
    shape, *others = candidates(q.shape[2])
    limit = pattern_tiles(q, k, [shape] * heads, block).head_density().mean(0)
    tried = [[shape] * heads, *(_within(q, k, other, limit, block) for other in others)]
    dense = F.scaled_dot_product_attention(q, repeat_kv(k, heads), repeat_kv(v, heads), is_causal=True)
    norm = dense.float().square().sum((0, 2, 3)).sqrt()
    scores = []
    for patterns in tried:
        out = tile_attention(q, k, v, pattern_tiles(q, k, patterns, block))
        scores.append(1 - (out - dense).float().square().sum((0, 2, 3)).sqrt() / norm)
    best = torch.stack(scores).max(0)
    return [
        replace(tried[i][head], score=round(score, 6))
        for head, (i, score) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    ]


def _within(q: Tensor, k: Tensor, pattern: Pattern, limit: Tensor, block: int) -> list[Pattern]:
    """The pattern of each head with its budgets scaled to at most `limit` [Hq], in executed over causal tiles."""
    low, high = torch.full_like(limit, 1 / 32), torch.full_like(limit, 32.0)
    for _ in range(FITS):
        middle = (low * high).sqrt()
        density = pattern_tiles(q, k, _each(pattern, middle), block).head_density().mean(0)
        low, high = torch.where(density <= limit, middle, low), torch.where(density <= limit, high, middle)
    return _each(pattern, low)


def _each(pattern: Pattern, factors: Tensor) -> list[Pattern]:
    return [_times([pattern], factor)[0] for factor in factors.tolist()]


# The aligned variant


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
