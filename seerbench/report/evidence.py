"""Evidence: what a check finds in a run, and the verdict that follows from it.

A check (checks_time, checks_quality) turns the rows of a run into comparisons. `verdicts.decide` turns these into a
verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pandas as pd

from seerbench.rows.bootstrap import Interval
from seerbench.rows.store import Run

REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE = "reproduced", "not reproduced", "not testable here"


@dataclass(frozen=True)
class Comparison:
    """Compare one measured number, with its 95% interval, with a bound that the paper gives.

    what: the number in words. interval: (estimate, low, high); low and high are NaN where there is no interval.
    above: whether the paper puts the number at or above the bound; otherwise at or below it. unit: "x", "%",
    "nats" and the like.
    """

    what: str
    interval: Interval
    bound: float
    above: bool
    unit: str

    @property
    def holds(self) -> bool:
        """Return whether the whole interval is on the paper's side. It is not if there is no interval."""
        return self.interval[1] >= self.bound if self.above else self.interval[2] <= self.bound

    @property
    def contradicts(self) -> bool:
        """Return whether the whole interval is on the other side."""
        return self.interval[2] < self.bound if self.above else self.interval[1] > self.bound

    @property
    def requirement(self) -> str:
        """Return the bound in words."""
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
    """Hold what a check found in a run.

    rows: the rows that the comparisons are made of. missing: what the claim speaks of and the run lacks. note:
    what a reader must know besides, in whole sentences.
    """

    comparisons: Sequence[Comparison]
    rows: pd.DataFrame
    missing: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """State the verdict on one claim.

    id, claim, place, scope: from results/paper/claims.csv. finding: what was measured, or what is missing. label:
    the machine, date and commit; empty where nothing was measured. scale: "toy scale", "small scale" or "paper
    scale". check: the file and function that judged. commands, minutes: the steps that measured the rows and
    their wall time.
    """

    id: str
    claim: str
    place: str
    scope: str
    verdict: str
    finding: str
    label: str
    check: str
    scale: str = ""
    commands: Sequence[str] = ()
    minutes: float = 0.0
    comparisons: Sequence[Comparison] = field(default=(), repr=False)

    @property
    def with_scale(self) -> str:
        """Return the verdict with the scale at which it was reached."""
        return f"{self.verdict} ({self.scale})" if self.scale else self.verdict


Check = Callable[[Run, pd.DataFrame], Evidence]
