"""Score the blocks of a cache for one query token with DecodeGate, the gate of SeerAttention-R, called recipe r.

    Z[t, J] = <R_t norm(sum_j Q_j[t] Wq_j), R_J norm(pool_k(K)_J Wk)> / sqrt(d)   for blocks J before that of t

There is one row of scores per query token, and one mask per key/value head: the queries of its group, j = 0, 1 and
so on, are projected by one matrix each and added. Keys are pooled by block as in AttnGate (gate.py). Queries and
keys are those before RoPE. A query is rotated by its own position, a block by that of its first token.

The block that a query is in is not scored: decoding always reads it (seer_decode.py).

Source: SeerAttention-R (arXiv:2506.08889) and the authors' code (microsoft/SeerAttention, decode_sparse).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from seerbench.core.block_mask import block_count
from seerbench.core.finite import require_finite
from seerbench.core.problem import Rope
from seerbench.core.reference import grouped_products
from seerbench.core.rope import block_starts, rotate
from seerbench.errors import ModelError
from seerbench.methods.decode_gate_config import RECIPE, DecodeGateConfig
from seerbench.methods.gate import concat_pools
from seerbench.methods.gate_config import OPERATORS
from seerbench.methods.gate_files import CURE, SHAPE, _described, _require_equal_names
from seerbench.methods.gate_losses import row_loss
from seerbench.reading import reading

NORM_EPSILON = 1e-6


class DecodeGate(nn.Module):
    """Gate of one layer for decoding, from single queries and pooled keys to block scores.

    wq is [Hk, g, D, D] with g = Hq / Hk, wk is [Hk, |Pk| D, D] for |Pk| operators in the pooling of the keys; the
    weights of the norms, if there are any, are [D]. The hidden size is the model's head dimension D.
    """

    def __init__(self, config: DecodeGateConfig, q_heads: int, kv_heads: int, head_dim: int) -> None:
        """Make a gate with the initial weights of the authors' code.

        Args:
            config: what the gate is made of.
            q_heads: Hq.
            kv_heads: Hk.
            head_dim: D.
        """
        super().__init__()
        self.config, self.q_heads, self.kv_heads, self.head_dim = config, q_heads, kv_heads, head_dim
        width = head_dim * sum(name in config.k_pool for name in OPERATORS)
        self.wq = nn.Parameter(torch.empty(kv_heads, q_heads // kv_heads, head_dim, head_dim))
        self.wk = nn.Parameter(torch.empty(kv_heads, width, head_dim))
        self.q_norm = nn.Parameter(torch.ones(head_dim)) if config.norm else None
        self.k_norm = nn.Parameter(torch.ones(head_dim)) if config.norm else None
        for weight in (self.wq, self.wk):
            nn.init.normal_(weight, std=0.02)

    def queries(self, q: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """Return projected and rotated queries [B, Hk, R, D].

        q: queries before RoPE, [B, Hq, R, D]; tables: cos and sin of their positions, which broadcast to the
        result.
        """
        grouped = q.unflatten(1, (self.kv_heads, -1))  # [B, Hk, g, R, D]
        projected = (grouped @ self.wq.to(q.dtype)).sum(2)
        return rotate(_normed(projected, self.q_norm), *tables)

    def keys(self, k_pools: Mapping[str, Tensor], tables: tuple[Tensor, Tensor]) -> Tensor:
        """Return projected and rotated keys of blocks, [B, Hk, n, D].

        k_pools: pools of the keys before RoPE by operator, [B, Hk, n, D]; tables: cos and sin of the blocks'
        positions, which broadcast to the result.
        """
        k = concat_pools(k_pools, self.config.k_pool)
        return rotate(_normed(k @ self.wk.to(k.dtype), self.k_norm), *tables)

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the scores of queries [B, Hk, R, D] and keys [B, Hk, n, D], fp32 [B, Hk, R, n]."""
        return (queries.float() @ keys.float().mT) * self.head_dim**-0.5

    def forward(self, q: Tensor, k_pools: Mapping[str, Tensor], rope: Rope, first: int = 0) -> Tensor:
        """Compute the scores of some query tokens, fp32 [B, Hk, R, n]; blocks not before a query's own have -inf.

        Args:
            q: queries first, first + 1, ... before RoPE, [B, Hq, R, D].
            k_pools: pools of the keys before RoPE by operator, [B, Hk, n, D].
            rope: the model's rotary embedding.
            first: position of the first query.
        """
        positions = torch.arange(first, first + q.shape[2], device=q.device)
        blocks = next(iter(k_pools.values())).shape[2]
        keys = self.keys(k_pools, rope(block_starts(blocks, self.config.block, q.device)))
        scores = self.scores(self.queries(q, rope(positions)), keys)
        return scores.masked_fill(~_earlier(positions, blocks, self.config.block), -math.inf)


def _normed(x: Tensor, weight: Tensor | None) -> Tensor:
    """Normalise x [..., D] to a mean square of 1 and multiply by the weight [D], in fp32; return x without one."""
    if weight is None:
        return x
    wide = x.float()
    return (wide * (wide.square().mean(-1, keepdim=True) + NORM_EPSILON).rsqrt() * weight.float()).to(x.dtype)


def _earlier(positions: Tensor, blocks: int, block: int) -> Tensor:
    """Return which blocks end before the block of each position, bool [R, blocks]."""
    return torch.arange(blocks, device=positions.device) < (positions // block)[:, None]


def decode_target(q: Tensor, k: Tensor, first: int, block: int) -> Tensor:
    """Compute the target of query tokens: per block the maximum of the attention weights, over keys and the group.

    A block that is not before the query's own has 0, and the rest of a row is divided by its sum. Queries of the
    first block have a row of zeros. Memory is that of the map of these queries, [B, Hq, R, first + R] in fp32.

    Args:
        q: queries first, first + 1, ..., [B, Hq, R, D] after RoPE.
        k: all keys [B, Hk, N, D] after RoPE.
        first: position of the first query.
        block: keys per block.

    Returns:
        fp32 (or wider, as q) [B, Hk, R, ceil(N / block)].
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    rows, blocks = q.shape[2], block_count(k.shape[2], block)
    seen = min(block_count(first + rows, block) * block, k.shape[2])
    positions = torch.arange(first, first + rows, device=q.device)
    logits = grouped_products(q.to(dtype) * q.shape[-1] ** -0.5, k[:, :, :seen].to(dtype))
    future = torch.arange(first, seen, device=q.device) > positions[:, None]
    logits[..., first:].masked_fill_(future, -math.inf)
    lse = logits.logsumexp(-1, keepdim=True)
    best = F.pad(logits, (0, -seen % block), value=-math.inf).unflatten(-1, (-1, block)).amax(-1)
    of_group = (best - lse).exp().unflatten(1, (k.shape[1], -1)).amax(2)
    target = F.pad(of_group, (0, blocks - of_group.shape[-1])) * _earlier(positions, blocks, block)
    return target / (target.sum(-1, keepdim=True) + 1e-9)


def decode_rows(tokens: int) -> range:
    """Return the query tokens of a sequence whose loss counts: the second half."""
    return range(tokens // 2, tokens)


def decode_loss(scores: Tensor, target: Tensor) -> Tensor:
    """Return KL(target, gate), its mean over all elements times LOSS_SCALE, a scalar.

    scores: fp32 [B, Hk, R, n], -inf in blocks that are not scored (`DecodeGate.forward`); target: `decode_target`.
    """
    return row_loss(scores, target, RECIPE)


def load_decode_gates(path: Path, name: str = RECIPE) -> list[DecodeGate]:
    """Read one set of gates for decoding from a file that `gate_files.save_gates` wrote, without gradients.

    Args:
        path: the file.
        name: the set.

    Returns:
        One gate per layer.

    Raises:
        ModelError: the file cannot be read, or `save_gates` did not write it; it has no set of this name, or the
            set is for prefill; weights are missing, left over, of another shape or not finite.
    """
    with reading(path, ModelError, CURE), safe_open(str(path), framework="pt") as file:
        sets = _described(file, path)
        if sets.get(name, {}).get("config", {}).get("recipe") != RECIPE:
            raise ModelError(f"{path} has no set {name!r} of gates for decoding; it has {', '.join(sets)}")
        config, shape = DecodeGateConfig(**sets[name]["config"]), [sets[name][key] for key in SHAPE]
        stored = {key: file.get_tensor(key) for key in file.keys() if key.startswith(f"{name}.")}  # noqa: SIM118
        gates = [DecodeGate(config, *shape) for _ in range(sets[name]["layers"])]
    wanted = {
        f"{name}.{index}.{key}": value
        for index, gate in enumerate(gates)
        for key, value in gate.state_dict().items()
    }
    _require_equal_names(stored, wanted, path)
    require_finite(stored.items(), str(path), CURE)
    for key, weight in wanted.items():
        weight.copy_(stored[key])
    return [gate.requires_grad_(False) for gate in gates]
