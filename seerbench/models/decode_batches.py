"""Put what methods for decoding keep of several texts side by side, so that texts are decoded together.

A text is prefilled alone, so that a method plans it without padding. `joined` then makes one state of the states of
a layer, as if the texts had been one batch, padded on the left; `chosen` leaves some of its texts out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

from torch import Tensor

from seerbench.baselines.decode.quest import KeyRanges
from seerbench.methods.decode_protocol import CacheState
from seerbench.methods.seer_decode import CompressedKeys

# The tensors [B, Hk, room, ...] of a state, and what room behind a text's own holds. Blocks are counted from each
# text's first token, so texts are padded behind their blocks, and not on the left as in the cache.
TENSORS: dict[type[CacheState], dict[str, float]] = {
    CacheState: {},
    CompressedKeys: {"keys": 0.0, "tail": 0.0},
    KeyRanges: {"ranges": -math.inf},
}


def joined(states: Sequence[CacheState]) -> CacheState:
    """Return one state of several texts in one layer, each of them kept alone.

    Args:
        states: of one method, at batch 1 each; a state without padding. Their tensors are copied.
    """
    if len(states) == 1:
        return states[0]
    out = copy.copy(states[0])
    out.lengths = tuple(length for state in states for length in state.lengths)
    out.first = tuple(max(out.lengths) - length for length in out.lengths)
    for name, fill in TENSORS[type(out)].items():
        setattr(out, name, _stacked([getattr(state, name) for state in states], fill))
    return out


def chosen(state: CacheState, rows: Tensor) -> CacheState:
    """Return the state of some of its texts, by their numbers, int64 [texts]."""
    out = copy.copy(state)
    numbers = rows.tolist()
    out.lengths = tuple(state.lengths[number] for number in numbers)
    out.first = tuple(state.first[number] for number in numbers)
    for name in TENSORS[type(out)]:
        setattr(out, name, getattr(state, name)[rows])
    return out


def _stacked(tensors: Sequence[Tensor], fill: float) -> Tensor:
    """Return tensors [1, Hk, room, D] with rooms of their own as one [B, Hk, largest room, D]."""
    room = max(each.shape[2] for each in tensors)
    first = tensors[0]
    out = first.new_full((len(tensors), first.shape[1], room, first.shape[3]), fill)
    for row, each in zip(out, tensors, strict=True):
        row[:, : each.shape[2]] = each[0]
    return out
