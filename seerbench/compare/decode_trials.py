"""Define the trials of a kernel for decoding: small caches and lists with one difficulty each.

decode_check.py runs them in the order of `decode_trials`, from easy to difficult.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from seerbench.compare.trials import Trial
from seerbench.core.block_mask import block_count
from seerbench.core.problem import AttentionProblem
from seerbench.kernels.decode.lists import CacheLists

ROOM = 7  # places of the cache behind the last token, where a trial has some
# New tokens are compared together, since one has so few numbers that their rounding is a matter of chance.
SEQUENCES = 128


def decode_trials(problem: AttentionProblem) -> list[Trial]:
    """Return the trials with the heads, head_dim, block size, dtype and device of a problem.

    The context of a trial is the number of tokens of its longest sequence, the new one included.
    """
    block = problem.block_k
    full = replace(problem, batch=SEQUENCES, context=5 * block)  # no partial block
    tail = replace(full, context=5 * block + block // 2 + 1)
    plain = replace(full, kv_heads=problem.q_heads)
    short = replace(full, context=1)
    grouped = problem.q_heads != problem.kv_heads
    groups = f"{problem.q_heads} query heads read {problem.kv_heads} key/value heads"
    return [
        Trial("every block listed", plain, "all", "wrong in plain attention of one token"),
        Trial("half of the blocks", plain, "random", "wrong lists: blocks[..., :counts] are the blocks"),
        *[Trial("grouped heads", full, "random", f"wrong key/value head (GQA): {groups}")] * grouped,
        Trial("large scores", full, "random", "softmax overflows: subtract the largest score", scale=40.0),
        Trial("a partial last block", tail, "all", "wrong in the last block, which has fewer tokens"),
        Trial("the last block alone", tail, "last", "wrong where a list has one block, or in a partial one"),
        Trial("the first block alone", tail, "first", "expects the last block in each list; it may be skipped"),
        Trial("blocks in no order", tail, "shuffled", "expects ascending blocks; a list may have any order"),
        Trial("lists of unlike lengths", tail, "unlike", "walks lists of one length; counts differ between heads"),
        Trial("lists without a block", tail, "empty", "wrong on an empty list, whose output is 0"),
        Trial("nothing listed", tail, "nothing", "wrong on empty lists, whose output is 0"),
        Trial("one token", short, "all", "wrong where the cache has one token"),
        Trial("a padded batch", tail, "padded", "wrong where sequences begin at places of their own (first)"),
        Trial(
            "NaN in what is not listed",
            tail,
            "padded",
            "reads keys or values that are not listed, padding, or the room behind the last token",
            views=True,
        ),
    ]


def decode_inputs(trial: Trial, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, CacheLists]:
    """Return normally distributed q [B, Hq, 1, D], k and v [B, Hk, N, D] of a trial, and its lists.

    Sequences end at the same place, and have unlike lengths in a padded batch. In a trial of views there is room
    behind that place, and everything that is not listed is NaN. They are drawn on the CPU: the same seed then gives
    the same numbers on every device.
    """
    problem = trial.problem
    places = problem.context + ROOM * trial.views
    lists = _lists(trial, generator)

    def draw(heads: int, tokens: int) -> Tensor:
        return torch.randn(problem.batch, heads, tokens, problem.head_dim, generator=generator)

    q, k, v = draw(problem.q_heads, 1) * trial.scale, *(draw(problem.kv_heads, places) for _ in range(2))
    if trial.views:
        unread = ~lists.to_tokens(places)
        k[unread] = v[unread] = torch.nan
    device, dtype = problem.device, getattr(torch, problem.dtype)
    fields = (lists.counts, lists.blocks, lists.first, lists.end)
    on_device = CacheLists(*(x.to(device) for x in fields), lists.block)
    return q.to(device, dtype), k.to(device, dtype), v.to(device, dtype), on_device


def _lists(trial: Trial, generator: torch.Generator) -> CacheLists:
    """Return the lists of a trial, on the CPU; what is behind the entries of a list is 0."""
    problem = trial.problem
    n = block_count(problem.context, problem.block_k)
    shorter = problem.block_k + 3 if trial.pattern == "padded" else 0
    lengths = [problem.context - place % 3 * shorter for place in range(problem.batch)]
    counts = torch.zeros(problem.batch, problem.kv_heads, dtype=torch.int32)
    blocks = torch.zeros(problem.batch, problem.kv_heads, n, dtype=torch.int32)
    for row, length in enumerate(lengths):
        own = block_count(length, problem.block_k)
        for head in range(problem.kv_heads):
            order = torch.randperm(own, generator=generator)
            half = order[: max(1, own // 2)]
            chosen = {
                "all": torch.arange(own),
                "random": half.sort().values,
                "last": torch.tensor([own - 1]),
                "first": torch.tensor([0]),
                "shuffled": half,
                "padded": half,
                "unlike": order[: 1 + (row + head) % own].sort().values,
                "empty": half.sort().values if (row + head) % 2 else order[:0],
                "nothing": order[:0],
            }[trial.pattern]
            counts[row, head] = len(chosen)
            blocks[row, head, : len(chosen)] = chosen.int()
    first = torch.tensor([problem.context - length for length in lengths], dtype=torch.int32)
    end = torch.full_like(first, problem.context)
    return CacheLists(counts, blocks, first, end, problem.block_k)
