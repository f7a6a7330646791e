"""SeerAttention-R: in each decoding step a gate chooses which blocks of the cache the new token reads.

    CompressedKeys   one layer's compressed keys, kept up token by token
    SeerDecode       the method: scores, selection by budget or threshold, attention over the chosen blocks

A step of a layer is `CompressedKeys.append` with the new key, `plan`, and `attend`. Blocks are counted from each
sequence's own first token, so a sequence that is padded on the left reads what it reads alone. (In the authors'
code blocks begin at multiples of the block size in the padded batch.)

Selection: of the finished blocks before the current one, a budget of T tokens keeps the T / block best, and a
threshold keeps those whose share of the softmax exceeds it; the first and the current block are kept whatever their
scores. The authors' code also gives the unfinished block a logit of 0, which takes part in the softmax and in the
budget; here it does not, as in training.

Source: SeerAttention-R (arXiv:2506.08889) and the authors' code (microsoft/SeerAttention, decode_sparse).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from seerbench.core.block_mask import block_count
from seerbench.core.problem import LayerContext, Rope
from seerbench.core.rope import block_starts
from seerbench.errors import Refused
from seerbench.kernels.attn_gate.reference import pool_blocks
from seerbench.kernels.decode.api import decode_attention
from seerbench.kernels.decode.lists import CacheLists
from seerbench.methods.decode_gate import DecodeGate

# By the position of which of its tokens a block is rotated that is finished while decoding. In training and prefill
# it is the first; the authors' code takes the last, the token of the step in which the block is finished.
ROTATED_BY = ("first", "last")
ROOM = 64  # blocks of room that a prefill leaves for those to come


@functools.lru_cache(maxsize=64)
def integers(values: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor of integers [len(values)]. All layers get the same tensor in a step."""
    # A tensor that is made on a GPU waits for what runs there; this copy does not.
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


class CompressedKeys:
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
        self.gate, self.rope, self.rotated_by = gate, rope, rotated_by
        self.first, self.lengths = tuple(first), tuple(k.shape[2] - start for start in first)
        block, blocks = gate.config.block, block_count(k.shape[2], gate.config.block)
        if any(first):  # tokens of each sequence from 0 on; what is rolled behind them is in no finished block
            k = torch.stack([row.roll(-start, 1) for row, start in zip(k, first, strict=True)])
        tables = rope(block_starts(blocks, block, k.device))
        self.keys = _with_room(gate.keys(pool_blocks(k, block), tables), ROOM)
        self.tail = k.new_zeros(*k.shape[:2], block, k.shape[3])
        for row, length in enumerate(self.lengths):
            unfinished = k[row, :, length - length % block : length]
            self.tail[row, :, : unfinished.shape[1]] = unfinished

    @torch.no_grad()
    def append(self, k: Tensor) -> None:
        """Take in the key of one new token per sequence, before RoPE, [B, Hk, 1, D]."""
        block, device = self.gate.config.block, k.device
        places = integers(tuple(length % block for length in self.lengths), torch.int64, device)
        self.tail[torch.arange(len(k), device=device), :, places] = k[:, :, 0]
        self.lengths = tuple(length + 1 for length in self.lengths)
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


def select_blocks(
    scores: Tensor, current: Tensor, budget: int | None = None, threshold: float | None = None
) -> Tensor:
    """Return which blocks one new token reads, bool [B, Hk, n].

    Args:
        scores: fp32 [B, Hk, n]; those of the current block and of later ones are not read.
        current: the block that each sequence's new token is in, int [B].
        budget: number of best blocks before the current one; or
        threshold: smallest share of the softmax over the blocks before the current one, exclusive.
    """
    columns = torch.arange(scores.shape[-1], device=scores.device)
    current = current[:, None, None]
    scores = scores.masked_fill(columns >= current, -math.inf)
    if budget is None:
        kept = scores.softmax(-1) > threshold
    else:
        best = scores.topk(min(budget, scores.shape[-1])).indices
        kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)
    return kept & (columns < current) | (columns == 0) | (columns == current)


class SeerDecode:
    """Sparse decoding whose blocks a learned gate chooses; models.hugging_face puts it into a model.

    plan:   scores of the finished blocks -> a list per key/value head
    attend: attention over the listed blocks, the same for all query heads of a group
    """

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
        if budget is not None and budget < self.block:
            raise ValueError(f"a budget is at least one block of {self.block} tokens, not {budget}")
        if rotated_by not in ROTATED_BY:
            raise ValueError(f"a block is rotated by its first or last position, not {rotated_by!r}")
        self.gates, self.budget, self.threshold, self.rotated_by = gates, budget, threshold, rotated_by
        self.model_layers = len(gates)
        if rotated_by == "last":
            self.name += "-last-position"

    @torch.no_grad()
    def start(self, layer: LayerContext, first: Sequence[int]) -> CompressedKeys:
        """Return the compressed keys of a prompt in one layer.

        Args:
            layer: has the prompt's q and k before RoPE, and the rotation.
            first: place of each sequence's first token.

        Raises:
            Refused: the gates are of another model.
        """
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

    @torch.no_grad()
    def score(self, q: Tensor, compressed: CompressedKeys) -> Tensor:
        """Return the scores of one new token, fp32 [B, Hk, n]; those of the current block on are undefined.

        q: the token's query before RoPE, [B, Hq, 1, D]; compressed: with the token's key.
        """
        lengths = compressed.lengths
        positions = integers(tuple(length - 1 for length in lengths), torch.int64, q.device)
        queries = compressed.gate.queries(q, _per_sequence(compressed.rope(positions)))
        blocks = block_count(max(lengths), self.block)
        return compressed.gate.scores(queries, compressed.keys[:, :, :blocks])[:, :, 0]

    def plan(self, q: Tensor, compressed: CompressedKeys) -> CacheLists:
        """Return the blocks that one new token reads; the arguments are those of `score`. It waits for no GPU."""
        scores, lengths = self.score(q, compressed), compressed.lengths
        current = integers(tuple((length - 1) // self.block for length in lengths), torch.int64, q.device)
        budget = None if self.budget is None else self.budget // self.block
        kept = select_blocks(scores, current, budget, self.threshold)
        first = integers(compressed.first, torch.int32, q.device)
        ends = [start + length for start, length in zip(compressed.first, lengths, strict=True)]
        end = integers(tuple(ends), torch.int32, q.device)
        return CacheLists.from_flags(kept, first, end, self.block, None if budget is None else budget + 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, lists: CacheLists) -> Tensor:
        """Return attention over the listed blocks, [B, Hq, 1, D]; arguments and errors of `decode_attention`."""
        return decode_attention(q, k, v, lists)
