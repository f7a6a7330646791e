"""Define the options of a gate, and the 49 combinations of pooling operators of Figure 10."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

# Pooling operators, in the order in which their results are concatenated.
OPERATORS = ("max", "min", "avg")
# The seven non-empty subsets of the operators. Q takes one and K takes one, which gives 49 pairs (Figure 10).
POOLINGS = ("max", "min", "avg", "maxmin", "maxavg", "minavg", "maxminavg")
# Queries that are not pooled: a gate then scores every query token, and a block row has the maximum of its rows.
UNPOOLED = "none"
# Versions of the paper, whose losses and initial weights differ.
RECIPES = ("v1", "v2")


@dataclass(frozen=True)
class GateConfig:
    """Options of a gate. The defaults are v1's: Qavg_Kmaxmin, linear layers on Q and K, RoPE, blocks of 64.

    Attributes:
        q_pool: pooling of the queries, one of POOLINGS, or UNPOOLED, which takes a single projection. Scores of
            single queries are the idea of SeerAttention-R (arXiv:2506.08889); this gate for a prefill is an
            extension of this project.
        k_pool: pooling of the keys, one of POOLINGS.
        projection: "double" has linear layers on Q and K, "single" on K alone, one per query head.
        rope: whether the gate rotates its pools itself and reads q and k before RoPE. Without it (Figure 9) it
            reads q and k after RoPE.
        block: keys per block.
        block_q: queries per block, a multiple of `block`; None means `block`.
        recipe: one of RECIPES; it decides the loss and the initial weights.

    Raises:
        ValueError: an option is unknown, or two of them do not go together.
    """

    q_pool: str = "avg"
    k_pool: str = "maxmin"
    projection: str = "double"
    rope: bool = True
    block: int = 64
    block_q: int | None = None
    recipe: str = "v1"

    def __post_init__(self) -> None:
        for which, choices in ((self.q_pool, (*POOLINGS, UNPOOLED)), (self.k_pool, POOLINGS)):
            if which not in choices:
                raise ValueError(f"no pooling {which!r}; choose from {', '.join(choices)}")
        if self.projection not in ("double", "single"):
            raise ValueError(f"projection is double or single, not {self.projection!r}")
        if self.recipe not in RECIPES:
            raise ValueError(f"recipe is v1 or v2, not {self.recipe!r}")
        if self.query_block % self.block:
            raise ValueError(f"block_q is a multiple of block ({self.block}), not {self.block_q}")
        if self.q_pool == UNPOOLED and self.projection != "single":
            raise ValueError("a gate without pooled queries (q_pool: none) takes a single projection, on K")
        if self.projection == "single" and self.q_pool not in (*OPERATORS, UNPOOLED):
            raise ValueError(f"a single projection needs one pooling operator on Q, not Q{self.q_pool}; use double")

    @property
    def query_block(self) -> int:
        """Return the number of queries per block."""
        return self.block_q or self.block

    @property
    def pooling(self) -> str:
        """Return the name of the two poolings together, such as Qavg_Kmaxmin."""
        return f"Q{self.q_pool}_K{self.k_pool}"


def all_poolings(**others: Any) -> dict[str, GateConfig]:
    """Return the 49 combinations of Figure 10 by name; `others` are passed on to GateConfig."""
    configs = (GateConfig(q_pool=q, k_pool=k, **others) for q, k in product(POOLINGS, POOLINGS))
    return {config.pooling: config for config in configs}
