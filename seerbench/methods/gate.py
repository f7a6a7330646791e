"""Score key blocks with AttnGate: pooled Q and K, one linear layer per head, RoPE at block starts.

    Z[I, J] = <R_I Wq pool_q(Q)_I, R_J Wk pool_k(K)_J> / sqrt(d)   for J <= I, else -inf

A gate without pooled queries scores every query token t, and a block row has the maximum of its rows:

    Z[I, J] = max over t in I of <q_t, R_J Wk pool_k(K)_J> / sqrt(d)

q_t is the model's own query after RoPE. The idea is SeerAttention-R's (arXiv:2506.08889), a gate for decoding.

Around it: its options (gate_config.py), its target and losses (gate_losses.py), its files (gate_files.py), the
rules that select blocks by its scores (core/top_k.py), and the method (seer_attention.py).

Source: SeerAttention v1 (arXiv:2410.13276v1) and its first code. Where the later version differs, the recipe is
called v2; a gate knows the recipe that it was made with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seerbench.core.block_mask import block_count, causal_blocks
from seerbench.core.problem import LayerContext, Rope
from seerbench.core.reference import repeat_kv
from seerbench.core.rope import block_starts, rotate
from seerbench.errors import KernelError
from seerbench.kernels.attn_gate import api
from seerbench.kernels.attn_gate.reference import pool_blocks
from seerbench.kernels.checks import check_tensors
from seerbench.methods.gate_config import OPERATORS, UNPOOLED, GateConfig

# Most bytes of the scores of query tokens that are in memory at one time (`_maxima_of_rows`).
SCORES_AT_ONCE = 2**26


def query_pools(q: Tensor, rotated: Tensor, config: GateConfig) -> dict[str, Tensor]:
    """Return what the gate reads of the queries, by operator.

    q: what is pooled, [B, Hq, N, D]; rotated: the queries after RoPE, which a gate without pooled queries reads.
    """
    return {UNPOOLED: rotated} if config.q_pool == UNPOOLED else pool_blocks(q, config.query_block)


def concat_pools(pools: Mapping[str, Tensor], pooling: str) -> Tensor:
    """Concatenate the pools of each operator in `pooling`, in the order max, min, avg.

    pools: [B, H, n, D] by operator. Returns [B, H, n, D * operators].
    """
    return torch.cat([pools[name] for name in OPERATORS if name in pooling], dim=-1)


class AttnGate(nn.Module):
    """Gate of one layer, from pooled q and k to block scores.

    Weights have one matrix per head and no bias. With |P| operators in a pooling, wq is [Hq, |Pq| D, D] (double
    projection only), wk is [Hk, |Pk| D, D] (double) or [Hq, |Pk| D, D] (single). The hidden size is the model's
    head dimension D, as in the paper.
    """

    def __init__(self, config: GateConfig, q_heads: int, kv_heads: int, head_dim: int) -> None:
        """Make a gate with the initial weights of its recipe.

        Args:
            config: what the gate is made of.
            q_heads: Hq.
            kv_heads: Hk.
            head_dim: D.
        """
        super().__init__()
        self.config, self.q_heads, self.kv_heads, self.head_dim = config, q_heads, kv_heads, head_dim
        q_width = head_dim * sum(name in config.q_pool for name in OPERATORS)  # read by a double projection only
        k_width = head_dim * sum(name in config.k_pool for name in OPERATORS)
        double = config.projection == "double"
        self.wq = nn.Parameter(torch.empty(q_heads, q_width, head_dim)) if double else None
        self.wk = nn.Parameter(torch.empty(kv_heads if double else q_heads, k_width, head_dim))
        for weight in self.parameters():
            if config.recipe == "v1":
                nn.init.xavier_uniform_(weight)  # with the fans of the whole 3-D tensor, as in the authors' code
            else:
                nn.init.normal_(weight, std=0.02)

    def forward(
        self, q_pools: Mapping[str, Tensor], k_pools: Mapping[str, Tensor], rope: Rope | None, first: int = 0
    ) -> Tensor:
        """Compute the scores, fp32 [B, Hq, nq, nk]; exactly the blocks above the diagonal have -inf.

        A gate without pooled queries returns the scores of the given query tokens, [B, Hq, R, nk].

        Args:
            q_pools: what the gate reads of the queries, [B, Hq, nq or R, D] by operator (`query_pools`).
            k_pools: pools of the keys by operator, [B, Hk, nk, D].
            rope: the model's rotary embedding; a gate without RoPE does not use it.
            first: position of the first query token, for a gate without pooled queries.
        """
        q, k = self.project(q_pools, k_pools, rope)
        scores = (q.float() @ repeat_kv(k, self.q_heads).float().transpose(-1, -2)) * self.head_dim**-0.5
        if self.config.q_pool == UNPOOLED:
            blocks_of_rows = torch.arange(first, first + q.shape[2], device=q.device) // self.config.block
            later = torch.arange(scores.shape[-1], device=q.device) > blocks_of_rows[:, None]
            return scores.masked_fill(later, -math.inf)
        # A query block is `rows` key blocks high.
        rows, columns = self.config.query_block // self.config.block, scores.shape[-1]
        return scores.masked_fill(~causal_blocks(columns, rows, 1, scores.device), -math.inf)

    def project(
        self, q_pools: Mapping[str, Tensor], k_pools: Mapping[str, Tensor], rope: Rope | None
    ) -> tuple[Tensor, Tensor]:
        """Return the projected and rotated pools, whose products are the scores.

        The arguments are those of `forward`. Returns q [B, Hq, nq, D] and k [B, Hk, nk, D] (single: Hq heads).
        """
        config = self.config
        unpooled = config.q_pool == UNPOOLED
        q = q_pools[UNPOOLED] if unpooled else concat_pools(q_pools, config.q_pool)
        k = concat_pools(k_pools, config.k_pool)
        if self.wq is None:
            k = repeat_kv(k, self.q_heads) @ self.wk.to(k.dtype)
        else:
            q = q @ self.wq.to(q.dtype)
            k = k @ self.wk.to(k.dtype)
        if config.rope:
            assert rope is not None  # gate_scores refuses a layer without it
            # A block has the position of its first token, and the frequencies are the model's.
            k = rotate(k, *rope(block_starts(k.shape[2], config.block, k.device)))
            if not unpooled:  # The model has rotated single queries.
                q = rotate(q, *rope(block_starts(q.shape[2], config.query_block, q.device)))
        return q, k


def gate_scores(gate: AttnGate, q: Tensor, k: Tensor, layer: LayerContext, upper_triangle: bool = True) -> Tensor:
    """Compute the scores of one layer's gate, fp32 [B, Hq, nq, nk].

    On a GPU and without gradients (torch.no_grad) the kernels of kernels/attn_gate compute them for pooled queries
    and square blocks; otherwise torch does.

    Args:
        gate: the layer's gate.
        q: queries [B, Hq, N, D] after RoPE, which a gate without RoPE or without pooled queries reads.
        k: keys [B, Hk, N, D] after RoPE.
        layer: has q and k before RoPE, which a gate with RoPE reads, and the rotation.
        upper_triangle: whether blocks above the diagonal must have the score -inf. If not, their scores are
            undefined; `select_top_k` and `select_threshold` do not read them.

    Raises:
        ValueError: the gate has RoPE and `layer` has no q and k before RoPE.
        KernelError: q and k do not fit together, or the gate was made for other heads.
    """
    rotated = q
    if gate.config.rope:
        if layer.q_unrotated is None or layer.k_unrotated is None or layer.rope is None:
            raise ValueError("the gate reads q and k before RoPE; run it inside a model (models.hugging_face)")
        k = layer.k_unrotated
        q = rotated if gate.config.q_pool == UNPOOLED else layer.q_unrotated
    config = gate.config
    kernels_run_it = config.query_block == config.block and config.q_pool != UNPOOLED
    if not q.is_cuda or torch.is_grad_enabled() or not kernels_run_it:
        check_tensors(q, k)
        # A single projection has one matrix per query head; a file of it does not tell the key/value heads.
        kv_heads = k.shape[1] if gate.wq is None else gate.kv_heads
        if (gate.q_heads, kv_heads, gate.head_dim) != (q.shape[1], k.shape[1], q.shape[3]):
            made_for = f"{gate.q_heads} and {kv_heads} heads of {gate.head_dim}"
            raise KernelError(f"the gate is for {made_for}; q and k are {list(q.shape)} and {list(k.shape)}")
        k_pools = pool_blocks(k, config.block)
        if config.q_pool == UNPOOLED:
            return _maxima_of_rows(gate, q, k_pools, layer.rope)
        return gate(query_pools(q, rotated, config), k_pools, layer.rope)
    tables = None
    if layer.rope is not None and config.rope:
        tables = layer.rope(block_starts(block_count(q.shape[2], config.block), config.block, q.device))
    pools = [[name for name in OPERATORS if name in pooling] for pooling in (config.q_pool, config.k_pool)]
    return api.gate_scores(q, k, (gate.wq, gate.wk), pools, tables, config.block, upper_triangle)


def _maxima_of_rows(gate: AttnGate, q: Tensor, k_pools: Mapping[str, Tensor], rope: Rope | None) -> Tensor:
    """Compute the scores of a gate without pooled queries, fp32 [B, Hq, nq, nk], -inf above the diagonal.

    Memory holds at most SCORES_AT_ONCE bytes of scores of query tokens at a time, and at least those of one block.
    q: after RoPE, [B, Hq, N, D].
    """
    config, (batch, heads, tokens, _) = gate.config, q.shape
    _, k = gate.project({UNPOOLED: q}, k_pools, rope)
    k, blocks = k.float().mT * gate.head_dim**-0.5, k.shape[2]
    rows, at_once = config.query_block, SCORES_AT_ONCE // (4 * batch * heads * blocks * config.query_block)
    scores = q.new_full((batch, heads, block_count(tokens, rows), blocks), -math.inf, dtype=torch.float32)
    for first in range(0, scores.shape[2], max(1, at_once)):
        last = min(first + max(1, at_once), scores.shape[2])
        queries = q[:, :, first * rows : last * rows].float()
        seen = min(last * rows // config.block, blocks)
        of_rows = F.pad(queries @ k[..., :seen], (0, 0, 0, -queries.shape[2] % rows), value=-math.inf)
        scores[:, :, first:last, :seen] = of_rows.unflatten(2, (-1, rows)).amax(3)
    return scores.masked_fill_(~causal_blocks(blocks, rows // config.block, 1, q.device), -math.inf)
