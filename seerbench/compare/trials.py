"""Define the trials of a kernel: small cases with one difficulty each, such as a partial last block.

check.py runs them in the order of `trials`, from easy to difficult.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.problem import AttentionProblem

Kernel = Callable[[Tensor, Tensor, Tensor, BlockMask], Tensor]


@dataclass(frozen=True)
class Trial:
    """One case that a kernel must get right.

    Attributes:
        name: the difficulty in words.
        problem: shape, context, block size, dtype and device.
        pattern: which blocks are kept (see `kept_blocks`).
        suspect: what to suspect if this trial is the first to fail.
        scale: factor on q; 40 gives scores whose exp overflows unless the row's maximum is subtracted.
        views: whether q, k and v are views as a model makes them: [B, N, H, D] transposed, with NaN beyond the last
            token.
        plans: whether the plan that a method makes itself is tried on this case too.
        subject: what is tried instead of a given mask, e.g. "its own plan"; empty for a given mask.
    """

    name: str
    problem: AttentionProblem
    pattern: str
    suspect: str
    scale: float = 1.0
    views: bool = False
    plans: bool = False
    subject: str = ""

    @property
    def title(self) -> str:
        """Return the subject and the name of the trial in one text."""
        return f"{self.subject}, {self.name}" if self.subject else self.name


@dataclass(frozen=True)
class Finding:
    """A trial that failed.

    Attributes:
        trial: the trial.
        error: the largest absolute error against the float64 reference.
        budget: the error that rounding explains.
        where: the heads, blocks and positions that are wrong.
        guess: the likely reason.
        recognised: whether the guess is certain enough to stand alone: the wrong output is what a common mistake
            gives.
    """

    trial: Trial
    error: float
    budget: float
    where: str
    guess: str
    recognised: bool = False


def trials(problem: AttentionProblem) -> list[Trial]:
    """Return the trials with the heads, head_dim, block size, dtype and device of a problem.

    Each trial sets its own context and batch. There are few distinct shapes, since a compiled kernel compiles once
    per shape.
    """
    block = max(problem.block_q, problem.block_k)
    full = replace(problem, batch=1, context=4 * block)  # no partial block
    tail = replace(full, context=4 * block + block // 2 + 1)
    short = replace(full, context=block // 2 + 1)
    plain = replace(full, kv_heads=problem.q_heads)
    batch = replace(tail, batch=2)
    grouped = problem.q_heads != problem.kv_heads
    groups = f"{problem.q_heads} query heads read {problem.kv_heads} key/value heads"
    return [
        Trial("every block kept", plain, "full", "wrong in plain causal attention"),
        Trial("half of the blocks", plain, "random", "wrong lists: kv_indices[..., :kv_num_blocks] are the blocks"),
        *[Trial("grouped heads", full, "random", f"wrong key/value head (GQA): {groups}", plans=True)] * grouped,
        Trial("large scores", full, "random", "softmax overflows: subtract the row's maximum", scale=40.0),
        Trial("a tail block", tail, "random", "wrong in the tail block", plans=True),
        Trial("the diagonal alone", tail, "diagonal", "wrong in the diagonal block"),
        Trial("the first block alone", tail, "first", "expects the diagonal block in each list; it may be skipped"),
        Trial("rows without a block", tail, "empty rows", "wrong on a row without a block, whose output is 0"),
        Trial("nothing kept", tail, "nothing", "wrong on rows without a block, whose output is 0"),
        Trial(
            "shorter than a block",
            short,
            "full",
            "wrong when there are fewer tokens than a block has",
            plans=True,
        ),
        Trial("a batch of views", batch, "random", "assumes contiguous inputs, or a batch of one", views=True),
    ]


def kept_blocks(trial: Trial, generator: torch.Generator) -> BlockMask:
    """Return the block mask of a trial; random patterns differ between heads and batch entries."""
    problem = trial.problem
    rows, columns = block_count(problem.context, problem.block_q), block_count(problem.context, problem.block_k)
    shape = (problem.batch, problem.q_heads, rows, columns)
    last_query = torch.arange(rows) * problem.block_q + problem.block_q - 1
    diagonal = torch.arange(columns) == (last_query.clamp(max=problem.context - 1) // problem.block_k)[:, None]
    random = (torch.rand(shape, generator=generator) < 0.5) | diagonal
    empty = (torch.arange(rows)[:, None] + torch.arange(problem.q_heads)[:, None, None]) % 2 == 0  # by row and head
    kept = {
        "full": torch.ones(shape, dtype=torch.bool),
        "random": random,
        "diagonal": diagonal.expand(shape),
        "first": (torch.arange(columns) == 0).expand(shape),
        "empty rows": random & ~empty,
        "nothing": torch.zeros(shape, dtype=torch.bool),
    }[trial.pattern]
    return BlockMask.from_dense(kept.to(problem.device), problem.context, problem.block_q, problem.block_k)


def inputs(trial: Trial, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return normally distributed q [B, Hq, N, D], k and v [B, Hk, N, D] of a trial.

    They are drawn on the CPU: the same seed then gives the same numbers on every device.
    """
    problem = trial.problem

    def draw(heads: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(problem.batch, problem.context, heads, problem.head_dim, generator=generator) * scale
        values = values.to(problem.device, getattr(torch, problem.dtype))
        if not trial.views:
            return values.transpose(1, 2).contiguous()
        shape = (problem.batch, problem.context + problem.block_k, heads, problem.head_dim)
        memory = values.new_full(shape, torch.nan)
        memory[:, : problem.context] = values
        return memory[:, : problem.context].transpose(1, 2)

    return draw(problem.q_heads, trial.scale), draw(problem.kv_heads), draw(problem.kv_heads)
