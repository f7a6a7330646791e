"""Verdicts: judge each claim of the paper, a sentence with a number or an ordering, from measured rows.

A check turns the rows of a run into comparisons: numbers with their 95% intervals, each with the side of a bound on
which the paper puts it. These are the rules:

- reproduced: every interval lies wholly on the paper's side, and nothing that the claim speaks of is missing.
- not reproduced: an interval lies wholly on the other side (contradicted) or contains the bound (undecided).
- not testable here: rows are missing.
- Claims about time need rows of a GPU at the paper's contexts, against FlashAttention-2. Claims about quality are
  judged on any model, at the contexts of its run; the label says how large the model is.
- If several runs can judge a claim, the run counts whose evidence reaches the longest context; among equal ones the
  run of the largest scale, then the latest.

`CLAIMS.md` is made of the published runs (claims_page.py); `seerbench check claims` compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from seerbench.artefacts import labels, paper_numbers
from seerbench.errors import MissingRows, ResultsError
from seerbench.paths import PAPER, PUBLISHED
from seerbench.report import checks_quality, checks_time
from seerbench.report.evidence import (
    NOT_REPRODUCED,
    NOT_TESTABLE,
    REPRODUCED,
    Check,
    Comparison,
    Evidence,
    Verdict,
)
from seerbench.rows.schema import SCALE_KINDS
from seerbench.rows.store import Run

CHECKS: dict[str, Check] = {
    "C1": checks_time.kernel_speedup,
    "C2": checks_time.attention_speedup,
    "C3": checks_quality.joint_half,
    "C4": checks_quality.joint_most,
    "C5": checks_quality.joint_beats_post,
    "C6": checks_quality.post_half,
    "C7": checks_quality.below_moa,
    "C8": checks_quality.below_minference,
    "C9": checks_quality.minference_at_128k,
    "C10": checks_quality.longer_is_sparser,
    "C11": checks_time.gate_share,
    "C12": checks_time.training_kernel,
    "C13": checks_quality.gate_needs_rope,
    "C14": checks_quality.best_pooling,
    "C15": checks_time.first_token_dense,
    "C16": checks_time.first_token_minference,
    "C17": checks_quality.tasks_at_or_above,
}
LISTED = 6  # A finding lists at most this many comparisons.


def paper_claims(folder: Path | str = PAPER) -> pd.DataFrame:
    """Return the claims of `<folder>/claims.csv`. Raises ResultsError if they are not those of CHECKS."""
    claims = pd.read_csv(Path(folder) / "claims.csv", dtype=str, keep_default_na=False)
    if list(claims.id) != list(CHECKS):
        raise ResultsError(
            f"{folder}/claims.csv has the claims {', '.join(claims.id)}; checks: {', '.join(CHECKS)}"
        )
    return claims


def judge(runs: Iterable[Run], folder: Path | str = PAPER) -> list[Verdict]:
    """Return one verdict per claim, each from the best evidence in the runs (by the rules of this module)."""
    paper, runs = paper_numbers.paper_values(folder), list(runs)
    return [_judge(claim, runs, paper) for claim in paper_claims(folder).itertuples()]


def _judge(claim: Any, runs: Sequence[Run], paper: pd.DataFrame) -> Verdict:
    check = CHECKS[claim.id]
    candidates, lacking = [], []
    for run in runs:
        try:
            evidence = check(run, paper)
        except MissingRows as missing:
            lacking.append(missing.what)
        else:
            steps = run.table("runs")
            steps = steps[steps.run_id.isin(evidence.rows.run_id.unique())]
            candidates.append((run, evidence, steps))
    fixed: dict[str, Any] = {"id": claim.id, "claim": claim.claim, "place": claim.where, "scope": claim.scope}
    fixed["check"] = f"{check.__module__.replace('.', '/')}.py, {check.__name__}"
    if not candidates:
        reasons = "; ".join(dict.fromkeys(lacking)) or "any run"
        return Verdict(**fixed, verdict=NOT_TESTABLE, finding=f"missing: {reasons}.", label="")
    run, evidence, steps = max(candidates, key=lambda candidate: _rank(candidate[1], candidate[2]))
    verdict, reason = decide(evidence)
    kinds = [kind for kind in SCALE_KINDS if kind in set(steps.scale_kind)]
    return Verdict(
        **fixed,
        verdict=verdict,
        finding=" ".join(text for text in (reason, _in_words(evidence.comparisons), evidence.note) if text),
        label=labels.label(run, evidence.rows).text,
        scale=", ".join(f"{kind} scale" for kind in kinds),
        commands=list(dict.fromkeys(steps.command)),
        minutes=steps.wall_s.sum() / 60,
        comparisons=evidence.comparisons,
    )


def _rank(evidence: Evidence, steps: pd.DataFrame) -> tuple[float, int, str]:
    """Return what decides between runs that can judge a claim: longest context, smallest scale, latest start."""
    scales = [SCALE_KINDS.index(kind) if kind in SCALE_KINDS else -1 for kind in steps.scale_kind]
    return evidence.rows.context.max(), min(scales), steps.started.max()


def decide(evidence: Evidence) -> tuple[str, str]:
    """Return (verdict, reason) by the rules of this module. The reason of a reproduced claim is empty."""
    comparisons = evidence.comparisons
    against = sum(comparison.contradicts for comparison in comparisons)
    undecided = sum(not comparison.holds and not comparison.contradicts for comparison in comparisons)
    missing = f"missing: {', '.join(evidence.missing)}." if evidence.missing else ""
    if against:
        return NOT_REPRODUCED, f"Contradicted by {against} of {len(comparisons)} comparisons. {missing}".strip()
    if undecided:
        return NOT_REPRODUCED, f"Undecided in {undecided} of {len(comparisons)} comparisons. {missing}".strip()
    return (NOT_TESTABLE, f"{missing} What was measured holds.") if missing else (REPRODUCED, "")


def _in_words(comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons with their bounds. Of more than LISTED, those against the claim come first."""
    if len(comparisons) <= LISTED:
        listed = list(comparisons)
    else:
        listed = sorted(comparisons, key=lambda each: (each.contradicts, not each.holds), reverse=True)[:LISTED]
    requirements = list(dict.fromkeys(comparison.requirement for comparison in listed))
    if len(requirements) == 1:
        rest = len(comparisons) - len(listed)
        text = "; ".join(map(str, listed)) + (f"; and {rest} more" if rest else "")
        return f"{text}. Required: {requirements[0]}."
    return "; ".join(f"{comparison} (required: {comparison.requirement})" for comparison in listed) + "."


def published_runs(folder: Path | str = PUBLISHED) -> list[Run]:
    """Return the published runs in the order of their names."""
    return [Run(path) for path in sorted(Path(folder).glob("*")) if path.is_dir()]
