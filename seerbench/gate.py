"""AttnGate: pooled Q and K, a linear layer a head, RoPE at block starts, scores of key blocks.

    Z[I, J] = <R_I Wq pool_q(Q)_I, R_J Wk pool_k(K)_J> / sqrt(d)   for J <= I, else -inf

Also here, since they belong to the same object: the target it learns, its losses, and the rules that
turn scores into a block mask. Source: SeerAttention v1 (arXiv:2410.13276v1) and its first code; where
the later version differs the recipe is called v2, and a gate carries the recipe it was made with.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from seerbench.attention import BlockMask, Layer, Rope, block_count, causal_blocks, repeat_kv

OPERATORS = ("max", "min", "avg")  # concatenated in this order
# The seven non-empty subsets; Q takes one and K takes one: 49 combinations (Figure 10).
POOLINGS = ("max", "min", "avg", "maxmin", "maxavg", "minavg", "maxminavg")
RECIPES = ("v1", "v2")
LOSS_SCALE = 10.0  # gate_loss_scale, the default of the authors' code


@dataclass(frozen=True)
class GateConfig:
    """What a gate is made of. The defaults are v1's: Qavg_Kmaxmin, two linears, RoPE, block 64."""

    q_pool: str = "avg"
    k_pool: str = "maxmin"
    projection: str = "double"  # double: linears on Q and K; single: on K alone, one a query head
    rope: bool = True  # False: the ablation arm of Figure 9, rotated q and k in, no RoPE inside
    block: int = 64  # keys a block, and query rows unless block_q says otherwise
    block_q: int | None = None
    recipe: str = "v1"  # decides loss and initialisation, never mixed

    def __post_init__(self) -> None:
        for which in (self.q_pool, self.k_pool):
            if which not in POOLINGS:
                raise ValueError(f"no pooling {which!r}; choose from {', '.join(POOLINGS)}")
        if self.projection not in ("double", "single"):
            raise ValueError(f"projection is double or single, not {self.projection!r}")
        if self.recipe not in RECIPES:
            raise ValueError(f"recipe is v1 or v2, not {self.recipe!r}")
        if self.query_block % self.block:
            raise ValueError(f"block_q is a multiple of block ({self.block}), not {self.block_q}")
        if self.projection == "single" and self.q_pool not in OPERATORS:
            raise ValueError(f"a single projection needs one pooling operator on Q, not Q{self.q_pool}; use double")

    @property
    def query_block(self) -> int:
        """Query rows a block."""
        return self.block_q or self.block

    @property
    def pooling(self) -> str:
        """The field's name for it, such as Qavg_Kmaxmin."""
        return f"Q{self.q_pool}_K{self.k_pool}"


def all_poolings(**others: Any) -> dict[str, GateConfig]:
    """The 49 combinations of Figure 10 by name; others are passed on to GateConfig."""
    configs = (GateConfig(q_pool=q, k_pool=k, **others) for q, k in product(POOLINGS, POOLINGS))
    return {config.pooling: config for config in configs}


def pool_blocks(x: Tensor, block: int) -> dict[str, Tensor]:
    """x [B, H, N, D] -> each operator over windows of `block` tokens, [B, H, n, D].

    A partial tail window is pooled over its real tokens only.
    """
    n, tail = block_count(x.shape[2], block), -x.shape[2] % block
    counts = torch.full((n, 1), block, dtype=x.dtype, device=x.device)
    counts[-1] -= tail

    def windows(fill: float) -> Tensor:
        return F.pad(x, (0, 0, 0, tail), value=fill).unflatten(2, (n, block))

    return {
        "max": windows(-math.inf).amax(3),
        "min": windows(math.inf).amin(3),
        "avg": windows(0.0).sum(3) / counts,
    }


def concat_pools(pools: Mapping[str, Tensor], pooling: str) -> Tensor:
    """[B, H, n, D] for each operator of `pooling` -> [B, H, n, D * operators], in the order max, min, avg."""
    return torch.cat([pools[name] for name in OPERATORS if name in pooling], dim=-1)


class AttnGate(nn.Module):
    """The gate of one layer: pooled q and k -> block scores.

    Weights are 3-D, one matrix a head, no bias: wq [Hq, |Pq| D, D] (double only) and wk [Hk, |Pk| D, D]
    (double) or [Hq, |Pk| D, D] (single). The hidden size is the model's head_dim D, as in the paper.
    """

    def __init__(self, config: GateConfig, q_heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.config, self.q_heads, self.head_dim = config, q_heads, head_dim
        q_width = head_dim * sum(name in config.q_pool for name in OPERATORS)
        k_width = head_dim * sum(name in config.k_pool for name in OPERATORS)
        double = config.projection == "double"
        self.wq = nn.Parameter(torch.empty(q_heads, q_width, head_dim)) if double else None
        self.wk = nn.Parameter(torch.empty(kv_heads if double else q_heads, k_width, head_dim))
        for weight in self.parameters():
            if config.recipe == "v1":
                nn.init.xavier_uniform_(weight)  # fans of the whole 3-D tensor, as the authors' code has it
            else:
                nn.init.normal_(weight, std=0.02)

    def forward(self, q_pools: Mapping[str, Tensor], k_pools: Mapping[str, Tensor], rope: Rope) -> Tensor:
        """Pools of q [B, Hq, nq, D] and k [B, Hk, nk, D] (`pool_blocks`) -> fp32 scores [B, Hq, nq, nk].

        Blocks above the diagonal score -inf. Nothing else is -inf, so that ranking never wastes a pick.
        """
        q, k = self.project(q_pools, k_pools, rope)
        scores = (q.float() @ repeat_kv(k, self.q_heads).float().transpose(-1, -2)) * self.head_dim**-0.5
        # In units of key blocks a row of query blocks is `rows` tokens high.
        rows, columns = self.config.query_block // self.config.block, scores.shape[-1]
        return scores.masked_fill(~causal_blocks(columns, rows, 1, scores.device), -math.inf)

    def project(
        self, q_pools: Mapping[str, Tensor], k_pools: Mapping[str, Tensor], rope: Rope
    ) -> tuple[Tensor, Tensor]:
        """What the scores are the products of: q [B, Hq, n, D], k [B, Hk (single: Hq), n, D]."""
        config = self.config
        q = concat_pools(q_pools, config.q_pool)
        k = concat_pools(k_pools, config.k_pool)
        if self.wq is None:
            k = repeat_kv(k, self.q_heads) @ self.wk.to(k.dtype)
        else:
            q = q @ self.wq.to(q.dtype)
            k = k @ self.wk.to(k.dtype)
        if config.rope:
            # Position of a block's first token, the backbone's own frequencies.
            q, k = (
                rotate(x, *rope(block_starts(x.shape[2], block, x.device)))
                for x, block in ((q, config.query_block), (k, config.block))
            )
        return q, k


@functools.lru_cache(maxsize=8)
def block_starts(blocks: int, block: int, device: torch.device) -> Tensor:
    """Position of each block's first token, int64 [blocks]: the same tensor for all layers (models.rope_of)."""
    return torch.arange(blocks, device=device) * block


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, rotate-half layout: x [B, H, n, D], cos and sin [n, D]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * sin.to(x.dtype)


def gate_scores(gate: AttnGate, q: Tensor, k: Tensor, layer: Layer, whole: bool = True) -> Tensor:
    """Scores [B, Hq, n, n] of one layer's gate, from the q and k that its config asks for.

    q and k are the rotated ones; the gate with RoPE reads those before RoPE from `layer`. On a GPU, where no
    gradient is wanted (torch.no_grad), all of it runs in kernels for square blocks (attn_gate.py).
    whole=False: for `select_top_k` and `select_threshold` alone, which do not read above the diagonal; what is
    there may be anything.
    """
    if gate.config.rope:
        if layer.q_unrotated is None or layer.k_unrotated is None or layer.rope is None:
            raise ValueError("the gate reads q and k before RoPE; run it inside a model (models.using)")
        q, k = layer.q_unrotated, layer.k_unrotated
    config = gate.config
    if not q.is_cuda or torch.is_grad_enabled() or config.query_block != config.block:
        return gate(pool_blocks(q, config.query_block), pool_blocks(k, config.block), layer.rope)
    from seerbench.kernels import attn_gate

    tables = None
    if config.rope:
        tables = layer.rope(block_starts(block_count(q.shape[2], config.block), config.block, q.device))
    operators = ([name for name in OPERATORS if name in pooling] for pooling in (config.q_pool, config.k_pool))
    pools = attn_gate.pool_side_by_side(list(zip((q, k), operators, strict=True)), config.block)
    projected = attn_gate.project(list(zip(pools, (gate.wq, gate.wk), strict=True)), tables)
    return attn_gate.block_scores(*projected, whole=whole)


# The target and the losses


def gate_target(pooled_map: Tensor, rows: int = 1) -> Tensor:
    """Max-pooled attention map [B, Hq, n, n] (zero above the diagonal) -> fp32 (or wider), rows of sum 1.

    rows: query blocks of the map to one of the target, [B, Hq, ceil(n / rows), n].
    """
    if rows > 1:
        padded = F.pad(pooled_map, (0, 0, 0, -pooled_map.shape[2] % rows))
        pooled_map = padded.unflatten(2, (-1, rows)).amax(3)
    pooled_map = pooled_map.to(torch.promote_types(pooled_map.dtype, torch.float32))
    return pooled_map / pooled_map.sum(-1, keepdim=True).clamp_min(torch.finfo(pooled_map.dtype).tiny)


def gate_loss(scores: Tensor, target: Tensor, recipe: str) -> Tensor:
    """Scalar loss of one layer, already times 10.

    v1: mean squared error of softmax(scores) over the full n x n square (zeros above the diagonal count).
    v2: KL(target, gate), element-wise mean as in KLDivLoss's default, without the first quarter of rows.
    """
    if recipe == "v1":
        return LOSS_SCALE * F.mse_loss(scores.softmax(-1), target.float())
    skip = scores.shape[-2] // 4
    finite = scores.masked_fill(scores == -math.inf, -1e20)  # 0 * inf would be NaN inside KL
    divergence = F.kl_div(finite.log_softmax(-1)[..., skip:, :], target.float()[..., skip:, :], reduction="none")
    return LOSS_SCALE * divergence.mean()


# From scores to a block mask


def top_k_count(blocks: int, sparsity: float) -> int:
    """Blocks a row keeps, the same for all rows: k = max(1, floor((1 - sqrt(1 - nz)) n)), nz = 1 - sparsity.

    Rows shorter than k keep all they see, so the sparsity is an average over the causal triangle.
    """
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity is the share of blocks skipped, in [0, 1), not {sparsity}")
    # 1 - (1 - s) is not s in floating point; rounding keeps floor() from losing an exact integer.
    return max(1, math.floor(round((1.0 - math.sqrt(sparsity)) * blocks, 9)))


def top_k_density(blocks: int, sparsity: float) -> float:
    """Causal blocks that the rule really keeps: what the other methods get as their budget."""
    k = top_k_count(blocks, sparsity)
    return (k * blocks - k * (k - 1) / 2) / (blocks * (blocks + 1) / 2)


def select_top_k(
    scores: Tensor, sparsity: float, tokens: int, block: int, last_rows_dense: int = 0, block_q: int | None = None
) -> BlockMask:
    """fp32 scores [B, Hq, nq, nk] (-inf where not visible) -> the best k of each row; ties go to the lower index.

    block_q: query rows a block, where they are not `block` as well.
    """
    k = top_k_count(scores.shape[-1], sparsity)
    if scores.is_cuda and block_q in (None, block):
        from seerbench.kernels import attn_gate

        return attn_gate.select_top_k(scores, k, tokens, block, last_rows_dense)
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)
    return _mask(kept, tokens, block, last_rows_dense, block_q)


def select_threshold(
    scores: Tensor, threshold: float, tokens: int, block: int, last_rows_dense: int = 0
) -> BlockMask:
    """Blocks whose softmax(scores) exceeds `threshold` (v2's rule); a row that none does keeps its best one."""
    if scores.is_cuda:
        from seerbench.kernels import attn_gate

        return attn_gate.select_threshold(scores, threshold, tokens, block, last_rows_dense)
    kept = scores.softmax(-1) > threshold
    best = torch.zeros_like(kept).scatter_(-1, scores.argmax(-1, keepdim=True), True)
    kept |= best & ~kept.any(-1, keepdim=True)
    return _mask(kept, tokens, block, last_rows_dense)


def select_budget(cost: Tensor, sparsity: float, tokens: int, block: int) -> BlockMask:
    """Blocks by one threshold on fp32 cost [B, Hq, n, n] (low is kept), at most as many as top-k would.

    The diagonal and blocks of cost -inf are kept always, even over the budget. Blocks of one other cost stand or
    fall together: where they would pass the budget they fall, and the realised sparsity is above the requested.
    """
    diagonal = torch.eye(cost.shape[-1], dtype=torch.bool, device=cost.device)
    limit = budget_limit(cost, sparsity)[:, None, None, None]
    return BlockMask.from_dense((cost <= limit) | diagonal, tokens, block, block)


def budget_limit(cost: Tensor, sparsity: float) -> Tensor:
    """The threshold of `select_budget`, fp32 [B]: a block is kept if its cost is at most that."""
    n = cost.shape[-1]
    seen = causal_blocks(n, 1, 1, cost.device)
    cost = cost.masked_fill(torch.eye(n, dtype=torch.bool, device=cost.device), -math.inf)
    budget = max(1, round(top_k_density(n, sparsity) * int(seen.sum()) * cost.shape[1]))
    limit = cost[:, :, seen].flatten(1).kthvalue(budget, dim=1).values
    kept = ((cost <= limit[:, None, None, None]) & seen).flatten(1).sum(1)
    below = torch.nextafter(limit, torch.full_like(limit, -math.inf))
    return torch.where(kept <= budget, limit, below)


def _mask(kept: Tensor, tokens: int, block: int, last_rows_dense: int, block_q: int | None = None) -> BlockMask:
    if last_rows_dense:
        kept[..., -last_rows_dense:, :] = True  # from_dense drops what is above the diagonal
    return BlockMask.from_dense(kept, tokens, block_q or block, block)


# On disk: one safetensors file holds gate sets by name, each a gate a layer


def save_gates(path: Path, sets: Mapping[str, Sequence[AttnGate]]) -> None:
    """Write {name: a gate for each layer} to one safetensors file with their configs."""
    tensors, about = {}, {}
    for name, gates in sets.items():
        shape = {
            "q_heads": gates[0].q_heads,
            "kv_heads": gates[0].wk.shape[0],
            "head_dim": gates[0].head_dim,
        }
        about[name] = {"config": asdict(gates[0].config), "layers": len(gates), **shape}
        for index, gate in enumerate(gates):
            tensors |= {
                f"{name}.{index}.{key}": value.detach().contiguous() for key, value in gate.state_dict().items()
            }
    save_file(tensors, str(path), metadata={"gates": json.dumps(about)})


def gate_set_names(path: Path) -> list[str]:
    """The gate sets in a file of `save_gates`."""
    with safe_open(str(path), framework="pt") as file:
        return list(json.loads(file.metadata()["gates"]))


def load_gates(path: Path, name: str | None = None) -> list[AttnGate]:
    """The gate set `name` (the only one if None) of a file; ValueError lists the names that it has."""
    with safe_open(str(path), framework="pt") as file:
        about = json.loads(file.metadata()["gates"])
        if name is None and len(about) == 1:
            name = next(iter(about))
        if name not in about:
            raise ValueError(f"{path} has no gate set {name!r}; it has {', '.join(about)}")
        one = about[name]
        gates = []
        for index in range(one["layers"]):
            gate = AttnGate(GateConfig(**one["config"]), one["q_heads"], one["kv_heads"], one["head_dim"])
            gate.load_state_dict({key: file.get_tensor(f"{name}.{index}.{key}") for key in gate.state_dict()})
            gates.append(gate.requires_grad_(False))
    return gates
