"""trials."""

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
    """One thing to get right: a case, the blocks kept in it, and what to suspect when it alone fails."""

    name: str
    case: AttentionProblem
    pattern: str  # see `kept_blocks`
    suspect: str
    scale: float = 1.0  # of q: 40 gives scores that overflow exp without the row's maximum
    views: bool = False  # q, k, v as a model hands them: [B, N, H, D] transposed, NaN beyond the last token


@dataclass(frozen=True)
class Finding:
    """A trial that failed: by how much, where, and a guess why (a guess, and it says so)."""

    trial: Trial
    error: float
    budget: float
    where: str
    guess: str

    def __str__(self) -> str:
        case = self.trial.case
        return "\n".join(
            (
                f"{self.trial.name}: {case.context} tokens, batch {case.batch}, blocks of {case.block_q}, "
                f"{case.q_heads} query over {case.kv_heads} key/value heads of {case.head_dim}, {case.dtype}",
                f"    error  {self.error:.2e}, may be {self.budget:.2e}",
                f"    where  {self.where}",
                f"    guess  {self.guess}",
            )
        )


def trials(case: AttentionProblem) -> list[Trial]:
    """The trials at a case's heads, head_dim, block, dtype and device; its context and batch are replaced.

    Few distinct shapes, since a compiled kernel compiles once for each.
    """
    block = max(case.block_q, case.block_k)
    whole = replace(case, batch=1, context=4 * block)
    tail = replace(whole, context=4 * block + block // 2 + 1)
    short = replace(whole, context=block // 2 + 1)
    plain = replace(whole, kv_heads=case.q_heads)
    many = replace(tail, batch=2)
    groups = f"{case.q_heads} query heads read {case.kv_heads} key/value heads"
    found = [
        Trial("every block kept", plain, "full", "wrong in plain causal attention"),
        Trial("half of the blocks", plain, "random", "wrong lists: kv_indices[..., :kv_num_blocks] are the blocks"),
        Trial("grouped heads", whole, "random", f"wrong key/value head (GQA): {groups}"),
        Trial("large scores", whole, "random", "softmax overflows: subtract the row's maximum", scale=40.0),
        Trial("a tail block", tail, "random", "wrong in the tail block"),
        Trial("the diagonal alone", tail, "diagonal", "wrong in the diagonal block"),
        Trial("the first block alone", tail, "first", "expects the diagonal block in each list; it may be skipped"),
        Trial("rows without a block", tail, "empty rows", "wrong on a row without a block, whose output is 0"),
        Trial("nothing kept", tail, "nothing", "wrong on rows without a block, whose output is 0"),
        Trial("shorter than a block", short, "full", "wrong when there are fewer tokens than a block has"),
        Trial("a batch of views", many, "random", "assumes contiguous inputs, or a batch of one", views=True),
    ]
    return [trial for trial in found if trial.name != "grouped heads" or case.q_heads != case.kv_heads]


def kept_blocks(trial: Trial, generator: torch.Generator) -> BlockMask:
    """The trial's block mask, of its own pattern in every head and batch entry."""
    case = trial.case
    rows, columns = block_count(case.context, case.block_q), block_count(case.context, case.block_k)
    shape = (case.batch, case.q_heads, rows, columns)
    last_query = torch.arange(rows) * case.block_q + case.block_q - 1
    diagonal = torch.arange(columns) == (last_query.clamp(max=case.context - 1) // case.block_k)[:, None]
    random = (torch.rand(shape, generator=generator) < 0.5) | diagonal
    empty = (torch.arange(rows)[:, None] + torch.arange(case.q_heads)[:, None, None]) % 2 == 0  # by row and head
    kept = {
        "full": torch.ones(shape, dtype=torch.bool),
        "random": random,
        "diagonal": diagonal.expand(shape),
        "first": (torch.arange(columns) == 0).expand(shape),
        "empty rows": random & ~empty,
        "nothing": torch.zeros(shape, dtype=torch.bool),
    }[trial.pattern]
    return BlockMask.from_dense(kept.to(case.device), case.context, case.block_q, case.block_k)


def inputs(trial: Trial, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Normal q [B, Hq, N, D], k and v [B, Hk, N, D], drawn on the CPU so that a seed means one thing."""
    case = trial.case

    def draw(heads: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(case.batch, case.context, heads, case.head_dim, generator=generator) * scale
        values = values.to(case.device, getattr(torch, case.dtype))
        if not trial.views:
            return values.transpose(1, 2).contiguous()
        memory = values.new_full((case.batch, case.context + case.block_k, heads, case.head_dim), torch.nan)
        memory[:, : case.context] = values
        return memory[:, : case.context].transpose(1, 2)

    return draw(case.q_heads, trial.scale), draw(case.kv_heads), draw(case.kv_heads)
