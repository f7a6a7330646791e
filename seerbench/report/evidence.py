"""evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pandas as pd

from seerbench.rows.bootstrap import Interval
from seerbench.rows.store import Run

REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE = "reproduced", "not reproduced", "not testable here"
SMALL = "small scale"  # how the scale of a preset begins whose models are trained here
# C12 says "same" and "near-equal" without a number; Figure 8 prints none. Within a tenth counts as that.
SAME = 1.1


@dataclass(frozen=True)
class Part:
    """One number with its interval, and the bound that it must be at least (`above`) or at most."""

    what: str
    interval: Interval
    bound: float
    above: bool
    unit: str

    @property
    def holds(self) -> bool:
        """Whether the whole interval is on the paper's side. False without an interval."""
        return self.interval[1] >= self.bound if self.above else self.interval[2] <= self.bound

    @property
    def contradicts(self) -> bool:
        """Whether the whole interval is on the other side."""
        return self.interval[2] < self.bound if self.above else self.interval[1] > self.bound

    @property
    def needs(self) -> str:
        """The bound in words."""
        return f"{'at least' if self.above else 'at most'} {_number(self.bound, self.unit)}"

    def __str__(self) -> str:
        estimate, low, high = self.interval
        between = "" if math.isnan(low) else f" [{_number(low)}, {_number(high)}]"
        return f"{self.what}: {_number(estimate, self.unit)}{between}"


def _number(value: float, unit: str = "") -> str:
    digits = "0" if value == 0 else f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}"
    return digits + {"": "", "x": "x", "%": "%"}.get(unit, f" {unit}")


@dataclass(frozen=True)
class Evidence:
    """What a check found in a run: its parts, the rows that they stand on, what the sentence asks beyond them."""

    parts: Sequence[Part]
    rows: pd.DataFrame
    missing: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """One claim, judged. `finding` and `label` are empty where nothing was measured."""

    id: str
    claim: str
    where: str
    scope: str
    verdict: str
    finding: str
    label: str
    check: str
    scale: str = ""  # the first words of the run's scale: "small scale"
    commands: Sequence[str] = ()
    minutes: float = 0.0
    parts: Sequence[Part] = field(default=(), repr=False)

    @property
    def shown(self) -> str:
        """The verdict with the scale that it was reached at."""
        return f"{self.verdict} ({self.scale})" if self.scale else self.verdict


Check = Callable[[Run, pd.DataFrame], Evidence]
