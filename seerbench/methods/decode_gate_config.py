"""Define the options of a gate for decoding. Presets read this file, so it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from seerbench.methods.gate_config import POOLINGS

RECIPE = "r"  # of SeerAttention-R, beside the recipes of gates for prefill


@dataclass(frozen=True)
class DecodeGateConfig:
    """Options of a DecodeGate. The defaults are those of the authors' training script.

    Attributes:
        k_pool: pooling of the keys, one of POOLINGS.
        norm: whether projected queries and keys are normalised (RMSNorm) before RoPE.
        block: keys per block.
        recipe: always "r"; it tells files of these gates from those of AttnGate.

    Raises:
        ValueError: an option has no such value.
    """

    k_pool: str = "maxminavg"
    norm: bool = True
    block: int = 64
    recipe: str = RECIPE

    def __post_init__(self) -> None:
        if self.k_pool not in POOLINGS:
            raise ValueError(f"no pooling {self.k_pool!r}; choose from {', '.join(POOLINGS)}")
        if self.recipe != RECIPE:
            raise ValueError(f"the recipe of a gate for decoding is {RECIPE}, not {self.recipe!r}")
