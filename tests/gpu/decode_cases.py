"""Cases that the tests of decoding share, in the interpreter and on a GPU: inputs, lists, the comparison."""

from __future__ import annotations

import torch
from torch import Tensor

from seerbench.core.block_mask import block_count
from seerbench.core.tolerance import assert_no_worse_than_rounding
from seerbench.kernels.decode.lists import CacheLists

KINDS = ["one block", "last alone", "all", "all, backwards", "random", "empty lists"]


def draw_cache(
    lengths: list[int],
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: str = "cpu",
    room: int = 7,
) -> tuple[list[Tensor], list[int]]:
    """Random q [B, Hq, 1, D], k and v [B, Hk, tokens + room, D], and the first token of each sequence.

    Sequences end at the same place; shorter ones have padding on the left.
    """
    tokens = max(lengths)
    shapes = [(len(lengths), heads, 1, head_dim), *[(len(lengths), kv_heads, tokens + room, head_dim)] * 2]
    return [torch.randn(shape, device=device).to(dtype) for shape in shapes], [tokens - n for n in lengths]


def build_lists(
    kind: str, lengths: list[int], first: list[int], kv_heads: int, block: int, device="cpu"
) -> CacheLists:
    """Lists of one of KINDS, with other entries for each head and sequence where the kind allows it."""
    n = block_count(max(lengths), block)
    counts = torch.zeros(len(lengths), kv_heads, dtype=torch.int32)
    blocks = torch.zeros(len(lengths), kv_heads, n, dtype=torch.int32)
    for row, length in enumerate(lengths):
        own = block_count(length, block)
        for head in range(kv_heads):
            order = torch.randperm(own)
            chosen = {
                "one block": order[:1],
                "last alone": torch.tensor([own - 1]),
                "all": torch.arange(own),
                "all, backwards": torch.arange(own).flip(0),
                "random": order[: max(1, own // 3)],
                "empty lists": order[: own // 2 if head else 0],
            }[kind]
            counts[row, head] = len(chosen)
            blocks[row, head, : len(chosen)] = chosen
    starts = torch.tensor(first, dtype=torch.int32)
    lists = (counts, blocks, starts, starts + torch.tensor(lengths, dtype=torch.int32))
    return CacheLists(*(x.to(device) for x in lists), block)


def read_by(lists: CacheLists, row: int, head: int) -> Tensor:
    """Return the places in the cache that one list reads."""
    blocks = lists.blocks[row, head, : lists.counts[row, head]].long()
    places = lists.first[row] + (blocks[:, None] * lists.block + torch.arange(lists.block, device=blocks.device))
    return places[places < lists.end[row]]


def poison(k: Tensor, v: Tensor, lists: CacheLists) -> None:
    """Overwrite what no list reads by NaN: other blocks, padding, and the room behind the tokens."""
    for row in range(k.shape[0]):
        for head in range(k.shape[1]):
            unread = torch.ones(k.shape[2], dtype=torch.bool, device=k.device)
            unread[read_by(lists, row, head)] = False
            k[row, head, unread] = v[row, head, unread] = torch.nan


def by_definition(q: Tensor, k: Tensor, v: Tensor, lists: CacheLists, dtype: torch.dtype) -> Tensor:
    """Attention over the listed blocks computed in `dtype`, list by list."""
    out = torch.zeros(q.shape, dtype=dtype, device=q.device)
    group = q.shape[1] // k.shape[1]
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            places = read_by(lists, row, head // group)
            if len(places):
                keys, values = (x[row, head // group, places].to(dtype) for x in (k, v))
                scores = q[row, head].to(dtype) @ keys.T * q.shape[-1] ** -0.5
                out[row, head] = scores.softmax(-1) @ values
    return out


def check_decoding(q: Tensor, k: Tensor, v: Tensor, lists: CacheLists, o: Tensor) -> None:
    """Compare o with float64; the budget is the error of the same maths in q's dtype. Empty lists give zeros."""
    exact, rounded = (by_definition(q, k, v, lists, dtype) for dtype in (torch.float64, q.dtype))
    assert o.dtype == q.dtype
    assert_no_worse_than_rounding(o, exact, rounded)
    empty = (lists.counts == 0).repeat_interleave(q.shape[1] // k.shape[1], 1)
    assert (o[empty] == 0).all()
