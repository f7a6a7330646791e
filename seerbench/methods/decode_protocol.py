"""Define what a method for decoding is: which blocks of the cache one new token per sequence reads.

    DecodeMethod   the base class: what it keeps of a layer's cache, how it scores blocks, how it attends
    BudgetDecode   the base of methods that take a budget and nothing else
    CacheState     what every method keeps: which tokens of the cache are whose
    NewToken       what a step of a layer gives to a method
    select_blocks  the rule by which scores become blocks, the same for all methods

A step of a layer is `append`, `plan` and `attend`. Blocks are counted from each sequence's own first token, so a
sequence that is padded on the left reads what it reads alone.

Selection: of the blocks before the current one, a budget of T tokens keeps the T / block best, and a threshold
keeps those whose share of the softmax exceeds it; the first and the current block are kept whatever their scores.

Letters in shapes: B batch, Hq query heads, Hk key/value heads, D head dimension, n blocks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from seerbench.core.problem import LayerContext
from seerbench.kernels.decode.api import decode_attention
from seerbench.kernels.decode.lists import CacheLists


@functools.lru_cache(maxsize=64)
def integers(values: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor of integers [len(values)]. All layers get the same tensor in a step."""
    # A tensor that is made on a GPU waits for what runs there; this copy does not.
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


class CacheState:
    """Which tokens of one layer's cache are whose. A method that keeps more inherits from it.

    All sequences end at the same place; shorter ones have padding before their first token.

    Attributes:
        first: place in the cache of each sequence's first token.
        lengths: tokens of each sequence so far.
    """

    def __init__(self, tokens: int, first: Sequence[int]) -> None:
        """Describe a prompt of `tokens` places whose sequences begin at `first`."""
        self.first, self.lengths = tuple(first), tuple(tokens - start for start in first)

    @property
    def end(self) -> int:
        """The place behind the last token."""
        return self.first[0] + self.lengths[0]

    def kept_bytes(self) -> int:
        """Return the bytes that the method keeps of the layer beside the cache of keys and values."""
        return 0

    def extend(self) -> None:
        """Count one new token per sequence."""
        self.lengths = tuple(length + 1 for length in self.lengths)


@dataclass(frozen=True)
class NewToken:
    """One new token per sequence, in one layer.

    Attributes:
        q: its query after RoPE, [B, Hq, 1, D].
        keys: the cache's keys after RoPE, the token's own included, [B, Hk, room, D]. What is behind the token's
            place is undefined.
        q_unrotated: its query before RoPE, [B, Hq, 1, D].
        k_unrotated: its key before RoPE, [B, Hk, 1, D].
    """

    q: Tensor
    keys: Tensor
    q_unrotated: Tensor
    k_unrotated: Tensor


StateT = TypeVar("StateT", bound=CacheState)


class DecodeMethod(Generic[StateT]):
    """Base class of methods for decoding, which models.hugging_face puts into models.

    A subclass that scores blocks defines `score`, and `start` and `append` if it keeps more than a CacheState.

    Attributes:
        name: the method's name.
        block: tokens per block.
        budget: tokens of the best blocks; None for a threshold.
        threshold: smallest share of the softmax for which a block is kept; None for a budget.
        model_layers: number of layers of the model that the method is for; None for any model.
    """

    name: str
    block: int
    budget: int | None = None
    threshold: float | None = None
    model_layers: int | None = None

    def start(self, layer: LayerContext, keys: Tensor, first: Sequence[int]) -> StateT:
        """Return what the method keeps of a prompt in one layer.

        Args:
            layer: has the prompt's q and k before RoPE, and the rotation.
            keys: the prompt's keys after RoPE, [B, Hk, N, D].
            first: place of each sequence's first token among the N.

        Raises:
            Refused: the method is for another model.
        """
        return CacheState(keys.shape[2], first)  # type: ignore[return-value]  # of subclasses that keep no more

    def append(self, token: NewToken, state: StateT) -> None:
        """Take in one new token per sequence."""
        state.extend()

    def score(self, token: NewToken, state: StateT) -> Tensor:
        """Return what blocks are ranked by, fp32 [B, Hk, n]; it is undefined from the current block on.

        token: has been appended to the state.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define score")

    def plan(self, token: NewToken, state: StateT) -> Any:
        """Return the blocks that one new token per sequence reads: CacheLists, unless a subclass says otherwise.

        token: has been appended to the state. The rule is `select_blocks`; it waits for no GPU.
        """
        device, lengths = token.q.device, state.lengths
        current = integers(tuple((length - 1) // self.block for length in lengths), torch.int64, device)
        budget = None if self.budget is None else self.budget // self.block
        kept = select_blocks(self.score(token, state), current, budget, self.threshold)
        first = integers(state.first, torch.int32, device)
        end = integers((state.end,) * len(lengths), torch.int32, device)
        return CacheLists.from_flags(kept, first, end, self.block, None if budget is None else budget + 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: Any) -> Tensor:
        """Return attention over what `plan` returned, [B, Hq, 1, D]; arguments and errors of `decode_attention`."""
        return decode_attention(q, k, v, plan)


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


class BudgetDecode(DecodeMethod[StateT]):
    """Base class of methods that rank blocks and take a budget."""

    def __init__(self, budget: int, block: int = 64) -> None:
        """Make the method.

        Args:
            budget: tokens of the best blocks, rounded down to whole blocks. With the first and the current block,
                at most two more blocks are read.
            block: tokens per block.

        Raises:
            ValueError: the budget is below one block.
        """
        require_budget(budget, block)
        self.budget, self.block = budget, block


def require_budget(budget: int, block: int) -> None:
    """Raise ValueError for a budget below one block."""
    if budget < block:
        raise ValueError(f"a budget is at least one block of {block} tokens, not {budget}")
