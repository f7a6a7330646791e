"""SeerAttention-R: in each decoding step a gate chooses which blocks of the cache the new token reads.

    CompressedKeys   one layer's compressed keys, kept up token by token
    SeerDecode       the method, whose scores are those of a gate for decoding

What a step is, and how scores become blocks, is in decode_protocol.py. Two things differ from the authors' code.
There, blocks begin at multiples of the block size in the padded batch; here they are counted from each sequence's
own first token. And there the unfinished block has a logit of 0, which takes part in the softmax and in the budget;
here it does not, as in training.

Source: SeerAttention-R (arXiv:2506.08889) and the authors' code (microsoft/SeerAttention, decode_sparse).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seerbench.core.block_mask import block_count
from seerbench.core.problem import LayerContext, Rope
from seerbench.core.rope import block_starts
from seerbench.errors import Refused
from seerbench.kernels.attn_gate.reference import pool_blocks
from seerbench.methods.decode_gate import DecodeGate
from seerbench.methods.decode_protocol import CacheState, DecodeMethod, NewToken, integers, require_budget

# By the position of which of its tokens a block is rotated that is finished while decoding. In training and prefill
# it is the first; the authors' code takes the last, the token of the step in which the block is finished.
ROTATED_BY = ("first", "last")
ROOM = 64  # blocks of room that a prefill leaves for those to come


class CompressedKeys(CacheState):
    """The gate's keys of one layer's finished blocks, and the raw keys of each sequence's unfinished block.

    Attributes:
        first: place in the cache of each sequence's first token.
        lengths: tokens of each sequence so far.
        keys: projected and rotated keys, [B, Hk, room, D]. Of a sequence, the blocks before lengths // block are
            finished; what is behind them is undefined.
        tail: keys before RoPE of the unfinished blocks, [B, Hk, block, D]; token t is at t % block.
    """

    def __init__(
        self, gate: DecodeGate, k: Tensor, rope: Rope, first: Sequence[int], rotated_by: str = "first"
    ) -> None:
        """Compress the keys of a prompt.

        Args:
            gate: the layer's gate.
            k: keys before RoPE, [B, Hk, N, D].
            rope: the model's rotary embedding.
            first: place of each sequence's first token among the N.
            rotated_by: one of ROTATED_BY, for blocks that are finished later.
        """
        super().__init__(k.shape[2], first)
        self.gate, self.rope, self.rotated_by = gate, rope, rotated_by
        block, blocks = gate.config.block, block_count(k.shape[2], gate.config.block)
        if any(first):  # tokens of each sequence from 0 on; what is rolled behind them is in no finished block
            k = torch.stack([row.roll(-start, 1) for row, start in zip(k, first, strict=True)])
        tables = rope(block_starts(blocks, block, k.device))
        self.keys = _with_room(gate.keys(pool_blocks(k, block), tables), ROOM)
        self.tail = k.new_zeros(*k.shape[:2], block, k.shape[3])
        for row, length in enumerate(self.lengths):
            unfinished = k[row, :, length - length % block : length]
            self.tail[row, :, : unfinished.shape[1]] = unfinished

    def kept_bytes(self) -> int:
        return self.keys.nbytes + self.tail.nbytes

    @torch.no_grad()
    def append(self, k: Tensor) -> None:
        """Take in the key of one new token per sequence, before RoPE, [B, Hk, 1, D]."""
        block, device = self.gate.config.block, k.device
        places = integers(tuple(length % block for length in self.lengths), torch.int64, device)
        self.tail[torch.arange(len(k), device=device), :, places] = k[:, :, 0]
        self.extend()
        if block_count(max(self.lengths), block) > self.keys.shape[2]:
            self.keys = _with_room(self.keys, self.keys.shape[2])
        finished = tuple(row for row, length in enumerate(self.lengths) if length % block == 0)
        if finished:
            self._finish(finished)

    def _finish(self, rows: tuple[int, ...]) -> None:
        """Compress the tails of these sequences, whose blocks are full."""
        block, device = self.gate.config.block, self.tail.device
        ends = [self.lengths[row] for row in rows]
        back = block if self.rotated_by == "first" else 1
        positions = integers(tuple(end - back for end in ends), torch.int64, device)
        which = integers(rows, torch.int64, device)
        keys = self.gate.keys(pool_blocks(self.tail[which], block), _per_sequence(self.rope(positions)))
        self.keys[which, :, integers(tuple(end // block - 1 for end in ends), torch.int64, device)] = keys[:, :, 0]


def _with_room(keys: Tensor, room: int) -> Tensor:
    """Return keys [B, Hk, n, D] with room for more blocks behind them."""
    return torch.cat([keys, keys.new_zeros(*keys.shape[:2], room, keys.shape[3])], 2)


def _per_sequence(tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return cos and sin [B, D] as [B, 1, 1, D]."""
    cos, sin = tables
    return cos[:, None, None], sin[:, None, None]


class SeerDecode(DecodeMethod[CompressedKeys]):
    """Sparse decoding whose blocks a learned gate chooses, the same for all query heads of a group."""

    name = "seer-r"

    def __init__(
        self,
        gates: Sequence[DecodeGate],
        budget: int | None = None,
        threshold: float | None = None,
        rotated_by: str = "first",
    ) -> None:
        """Make the method from trained gates.

        Args:
            gates: one gate per layer, all with the same configuration.
            budget: tokens of the best blocks, rounded down to whole blocks. With the first and the current block,
                at most two more blocks are read.
            threshold: smallest share of the softmax for which a block is kept, in place of a budget.
            rotated_by: "first" rotates each block by its first position, as in training; "last" does as the
                authors' code, which rotates blocks that are finished while decoding by their last.

        Raises:
            ValueError: unless exactly one of budget and threshold is given; or for a budget below one block, or
                another `rotated_by`.
        """
        if (budget is None) == (threshold is None):
            raise ValueError("SeerDecode takes a budget (tokens) or a threshold, and not both")
        self.block = gates[0].config.block
        if budget is not None:
            require_budget(budget, self.block)
        if rotated_by not in ROTATED_BY:
            raise ValueError(f"a block is rotated by its first or last position, not {rotated_by!r}")
        self.gates, self.budget, self.threshold, self.rotated_by = gates, budget, threshold, rotated_by
        self.model_layers = len(gates)
        if rotated_by == "last":
            self.name += "-last-position"

    @torch.no_grad()
    def start(self, layer: LayerContext, keys: Tensor, first: Sequence[int]) -> CompressedKeys:
        gate, q, k = self.gates[layer.index % len(self.gates)], layer.q_unrotated, layer.k_unrotated
        assert q is not None  # inside a model
        assert k is not None
        assert layer.rope is not None
        given, wanted = (gate.q_heads, gate.kv_heads, gate.head_dim), (q.shape[1], k.shape[1], k.shape[3])
        if layer.index >= len(self.gates) or given != wanted:
            raise Refused(
                f"the gates for decoding are for {len(self.gates)} layers of {given} (query heads, key/value "
                f"heads, head_dim), and layer {layer.index} has {wanted}; they are of another model"
            )
        return CompressedKeys(gate, k, layer.rope, first, self.rotated_by)

    def append(self, token: NewToken, state: CompressedKeys) -> None:
        state.append(token.k_unrotated)

    @torch.no_grad()
    def score(self, token: NewToken, state: CompressedKeys) -> Tensor:
        lengths = state.lengths
        positions = integers(tuple(length - 1 for length in lengths), torch.int64, token.q.device)
        queries = state.gate.queries(token.q_unrotated, _per_sequence(state.rope(positions)))
        blocks = block_count(max(lengths), self.block)
        return state.gate.scores(queries, state.keys[:, :, :blocks])[:, :, 0]
