"""Evidence: what a check finds in a run, the verdict of that run, and the judgement on a claim from all of them.

    rows of a run -> check (checks_*.py) -> Evidence -> Verdict (per run) -> Judgement (per claim)

`verdicts.decide` makes a verdict of evidence, `verdicts.judge` a judgement of verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from seerbench.rows.bootstrap import Interval
from seerbench.rows.store import Run

REPRODUCED, CONTRADICTED, UNDECIDED = "reproduced", "contradicted", "undecided"
NOT_TESTABLE, NOT_MEASURED = "not testable here", "not measured"
# In the order of every count.
KINDS = (REPRODUCED, CONTRADICTED, UNDECIDED, NOT_TESTABLE, NOT_MEASURED)
# Values of runs.scale_kind -> the words of a verdict.
SCALES = {"toy": "toy scale", "small": "small scale", "real": "real model", "paper": "paper scale"}
# More decimals than this are never printed: two numbers that agree in all of them are printed as equal.
MOST_DECIMALS = 9


@dataclass(frozen=True)
class Comparison:
    """Compare one measured number, with its 95% interval, with a bound that the paper gives.

    Attributes:
        what: the number in words.
        interval: (estimate, low, high); low and high are NaN where there is no interval.
        bound: the number that the paper gives.
        above: whether the paper puts the measured number at or above the bound; otherwise at or below it.
        unit: "x", "%", "nats" and the like.
        rounding: by how much the bound may differ from what the paper measured, since its numbers are printed with
            few digits. Only a number beyond the bound and this is against the claim.
        ours: whether the comparison is this project's reading of the claim: the paper has a word, such as "same",
            where this has a bound, or names another task. A number within the bound supports the claim; a number
            beyond it decides nothing.
    """

    what: str
    interval: Interval
    bound: float
    above: bool
    unit: str
    rounding: float = 0.0
    ours: bool = False

    @property
    def holds(self) -> bool:
        """Return whether the whole interval is on the paper's side. It is not if there is no interval."""
        return self.interval[1] >= self.bound if self.above else self.interval[2] <= self.bound

    @property
    def contradicts(self) -> bool:
        """Return whether the whole interval is on the other side of any number that the paper can mean."""
        if self.ours:
            return False
        return self.interval[2] < self._outermost if self.above else self.interval[1] > self._outermost

    @property
    def _outermost(self) -> float:
        """Return the bound that is the most favorable to the paper."""
        return self.bound - self.rounding if self.above else self.bound + self.rounding

    @property
    def decimals(self) -> int:
        """Return the number of decimals that show on which side of the bound each end of the interval is.

        There are at least three decimals below 1, and three digits from 1 on.
        """
        numbers = [number for number in self.interval if not math.isnan(number)]
        bounds = (self.bound, self._outermost)
        for decimals in range(_decimals(self.interval[0]), MOST_DECIMALS):
            if all(_same_order(number, bound, decimals) for number in numbers for bound in bounds):
                return decimals
        return MOST_DECIMALS

    def requirement(self, decimals: int) -> str:
        """Return the bound in words, with at least this number of decimals where it has them."""
        words = f"{'at least' if self.above else 'at most'} {_bound_text(self.bound, decimals)}"
        if self.ours:
            return f"{_with_unit(words, self.unit)} (our reading of the claim; a number beyond it decides nothing)"
        if self.rounding and not self.holds:
            outermost = _bound_text(self._outermost, decimals + 1)
            return (
                f"{_with_unit(words, self.unit)} (up to {outermost} is equal in the digits that the paper prints)"
            )
        return _with_unit(words, self.unit)

    def __str__(self) -> str:
        estimate, low, high = (f"{number:.{self.decimals}f}" for number in self.interval)
        counted = (
            self.interval[1] == self.interval[2]
        )  # A number that is not sampled, such as bytes, has no spread.
        between = "" if counted or math.isnan(self.interval[1]) else f" [{low}, {high}]"
        return f"{self.what}: {_with_unit(estimate, self.unit)}{between}"


def _decimals(number: float) -> int:
    """Return the decimals of a number with three digits, or of one below 1 with three decimals."""
    return 3 if abs(number) < 1 else max(0, 2 - math.floor(math.log10(abs(number))))


def _bound_text(bound: float, decimals: int) -> str:
    """Return a bound without zeros at its end, so that "5.67" and "0" are printed as the paper has them."""
    text = f"{bound:.{max(decimals, _decimals(bound))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _same_order(number: float, bound: float, decimals: int) -> bool:
    """Return whether number and bound compare as printed as they do exactly."""
    printed, printed_bound = float(f"{number:.{decimals}f}"), float(_bound_text(bound, decimals))
    return (printed < printed_bound, printed > printed_bound) == (number < bound, number > bound)


def _with_unit(text: str, unit: str) -> str:
    return text + {"": "", "x": "x", "%": "%"}.get(unit, f" {unit}")


@dataclass(frozen=True)
class Evidence:
    """Hold what a check found in a run.

    rows: the rows that the comparisons are made of. missing: what the claim speaks of and the run lacks. note:
    what a reader must know besides, in whole sentences; it decides nothing. varied: the comparisons of the claim
    with one thing changed, by what was changed (quality_rows.py); they decide nothing either.
    """

    comparisons: Sequence[Comparison]
    rows: pd.DataFrame
    missing: Sequence[str] = ()
    note: str = ""
    varied: Mapping[str, Sequence[Comparison]] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """State what one run says about one claim.

    run: the name of the run's folder. own: whether it is the reader's own run and not a published one. finding:
    what was measured. label: the scale in words, machine, date and commit. scale_kind: the weakest of the
    rows' executions, one of schema.SCALE_KINDS; None if none has one. commands, minutes: the steps that measured
    the rows and their wall time. varied: the variations of the evidence in words; empty for a reproduced claim.
    """

    run: str
    own: bool
    verdict: str
    finding: str
    label: str
    scale_kind: str | None = None
    commands: Sequence[str] = ()
    minutes: float = 0.0
    comparisons: Sequence[Comparison] = field(default=(), repr=False)
    varied: str = ""

    @property
    def with_scale(self) -> str:
        """Return the verdict with the scale at which it was reached."""
        return f"{self.verdict} ({SCALES[self.scale_kind]})" if self.scale_kind else self.verdict


@dataclass(frozen=True)
class Judgement:
    """State the judgement on one claim, with all evidence.

    id, claim, place, scope: from results/paper/claims.csv. check: the file and function that judged. evidence: the
    verdicts of all runs that can judge the claim, strongest first; the first decides. lacking: what the other runs
    lack, in words. own_lacks: what the reader's own run lacks; empty if it can judge, or if there is none.
    without_rows: the verdict if no run can judge.
    """

    id: str
    claim: str
    place: str
    scope: str
    check: str
    evidence: Sequence[Verdict]
    lacking: str = ""
    own_lacks: str = ""
    without_rows: str = NOT_TESTABLE

    @property
    def verdict(self) -> str:
        """Return the verdict of the strongest evidence, one of KINDS."""
        return self.evidence[0].verdict if self.evidence else self.without_rows

    @property
    def with_scale(self) -> str:
        """Return the verdict with the scale of the strongest evidence."""
        return self.evidence[0].with_scale if self.evidence else self.without_rows

    @property
    def finding(self) -> str:
        """Return what decided, or what is missing."""
        return self.evidence[0].finding if self.evidence else f"Missing: {self.lacking}."


Check = Callable[[Run, pd.DataFrame], Evidence]
