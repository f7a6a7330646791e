"""gate_config."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

OPERATORS = ("max", "min", "avg")  # concatenated in this order
# The seven non-empty subsets; Q takes one and K takes one: 49 combinations (Figure 10).
POOLINGS = ("max", "min", "avg", "maxmin", "maxavg", "minavg", "maxminavg")
RECIPES = ("v1", "v2")


@dataclass(frozen=True)
class GateConfig:
    """What a gate is made of. The defaults are v1's: Qavg_Kmaxmin, two linears, RoPE, block 64."""

    q_pool: str = "avg"
    k_pool: str = "maxmin"
    projection: str = "double"  # double: linears on Q and K; single: on K alone, one a query head
    rope: bool = True  # False: the ablation arm of Figure 9, rotated q and k in, no RoPE inside
    block: int = 64  # keys a block, and query rows unless block_q says otherwise
    block_q: int | None = None
    recipe: str = "v1"  # decides loss and initialisation, never mixed

    def __post_init__(self) -> None:
        for which in (self.q_pool, self.k_pool):
            if which not in POOLINGS:
                raise ValueError(f"no pooling {which!r}; choose from {', '.join(POOLINGS)}")
        if self.projection not in ("double", "single"):
            raise ValueError(f"projection is double or single, not {self.projection!r}")
        if self.recipe not in RECIPES:
            raise ValueError(f"recipe is v1 or v2, not {self.recipe!r}")
        if self.query_block % self.block:
            raise ValueError(f"block_q is a multiple of block ({self.block}), not {self.block_q}")
        if self.projection == "single" and self.q_pool not in OPERATORS:
            raise ValueError(f"a single projection needs one pooling operator on Q, not Q{self.q_pool}; use double")

    @property
    def query_block(self) -> int:
        """Query rows a block."""
        return self.block_q or self.block

    @property
    def pooling(self) -> str:
        """The field's name for it, such as Qavg_Kmaxmin."""
        return f"Q{self.q_pool}_K{self.k_pool}"


def all_poolings(**others: Any) -> dict[str, GateConfig]:
    """The 49 combinations of Figure 10 by name; others are passed on to GateConfig."""
    configs = (GateConfig(q_pool=q, k_pool=k, **others) for q, k in product(POOLINGS, POOLINGS))
    return {config.pooling: config for config in configs}
