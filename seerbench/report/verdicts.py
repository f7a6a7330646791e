"""Claims: each sentence of the paper with a number or an ordering in it, judged from measured rows.

A check turns a run's rows into parts: numbers with their 95% intervals, each with the side of a bound on
which the paper puts it. The rules:

- reproduced: every interval lies wholly on the paper's side, and nothing that the sentence speaks of is
  missing. not reproduced: one lies wholly on the other side (contradicted) or across the bound
  (undecided). not testable here: rows are missing.
- Sentences about time stand on rows of a GPU at the paper's contexts, against FlashAttention-2; those
  about quality on any model, at that run's contexts: the label says how large it was.
- Of several runs that can judge a claim, the one whose evidence reaches the longest context counts, then
  one that is not at small scale, then the latest: a GPU run takes the place of a small one by itself.

`CLAIMS.md` is `page()` of the published runs; `seerbench check claims` compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from seerbench.artefacts import frames
from seerbench.errors import ResultsError
from seerbench.paths import PAPER, PUBLISHED
from seerbench.report.checks_quality import (
    below_minference,
    below_moa,
    best_pooling,
    gate_needs_rope,
    joint_beats_post,
    joint_half,
    joint_most,
    longer_is_sparser,
    minference_at_128k,
    post_half,
    tasks_at_or_above,
)
from seerbench.report.checks_time import (
    attention_speedup,
    first_token_dense,
    first_token_minference,
    gate_share,
    kernel_speedup,
    training_kernel,
)
from seerbench.report.evidence import (
    NOT_REPRODUCED,
    NOT_TESTABLE,
    REPRODUCED,
    SMALL,
    Check,
    Evidence,
    Part,
    Verdict,
)
from seerbench.rows.store import Run

CHECKS: dict[str, Check] = {
    "C1": kernel_speedup,
    "C2": attention_speedup,
    "C3": joint_half,
    "C4": joint_most,
    "C5": joint_beats_post,
    "C6": post_half,
    "C7": below_moa,
    "C8": below_minference,
    "C9": minference_at_128k,
    "C10": longer_is_sparser,
    "C11": gate_share,
    "C12": training_kernel,
    "C13": gate_needs_rope,
    "C14": best_pooling,
    "C15": first_token_dense,
    "C16": first_token_minference,
    "C17": tasks_at_or_above,
}


def paper_claims(folder: Path | str = PAPER) -> pd.DataFrame:
    """The sentences: `<folder>/claims.csv`. ResultsError where it and CHECKS do not name the same ones."""
    claims = pd.read_csv(Path(folder) / "claims.csv", dtype=str, keep_default_na=False)
    if list(claims.id) != list(CHECKS):
        raise ResultsError(
            f"{folder}/claims.csv has the claims {', '.join(claims.id)}; checks: {', '.join(CHECKS)}"
        )
    return claims


def judge(runs: Iterable[Run], folder: Path | str = PAPER) -> list[Verdict]:
    """A verdict a claim, each from the best evidence that the runs have (the rule stands above)."""
    paper, runs = frames.paper_values(folder), list(runs)
    return [_judge(claim, runs, paper) for claim in paper_claims(folder).itertuples()]


def _judge(claim, runs: Sequence[Run], paper: pd.DataFrame) -> Verdict:
    found, lacking = [], []
    for run in runs:
        try:
            evidence = CHECKS[claim.id](run, paper)
        except ResultsError as error:
            lacking.append(str(error).removeprefix(f"{run.folder} has no ").split("; measure")[0])
        else:
            steps = run.table("runs")
            steps = steps[steps.run_id.isin(evidence.rows.run_id.unique())]
            large = not steps.scale.str.startswith(SMALL).any()
            rank = evidence.rows.context.max(), large, steps.started.max(), len(found)
            found.append((rank, run, evidence, steps))
    check = CHECKS[claim.id]
    about = {"id": claim.id, "claim": claim.claim, "where": claim.where, "scope": claim.scope}
    about["check"] = f"seerbench/claims.py, {check.__name__}"
    if not found:
        reasons = "; ".join(dict.fromkeys(lacking)) or "any run"
        return Verdict(**about, verdict=NOT_TESTABLE, finding=f"missing: {reasons}.", label="")
    _, run, evidence, steps = max(found, key=lambda one: one[0])
    verdict, why = decide(evidence)
    return Verdict(
        **about,
        verdict=verdict,
        finding=" ".join(text for text in (why, _shown(evidence.parts), evidence.note) if text),
        label=frames.label(run, evidence.rows).removeprefix("measured: "),
        scale=", ".join(dict.fromkeys(text.split(":")[0] for text in steps.scale)),
        commands=list(dict.fromkeys(steps.command)),
        minutes=steps.wall_s.sum() / 60,
        parts=evidence.parts,
    )


def decide(evidence: Evidence) -> tuple[str, str]:
    """(verdict, why) from the parts, by the rules at the top of this file."""
    parts = evidence.parts
    against = sum(part.contradicts for part in parts)
    open_ones = sum(not part.holds and not part.contradicts for part in parts)
    missing = f"missing: {', '.join(evidence.missing)}." if evidence.missing else ""
    if against:
        return NOT_REPRODUCED, f"Contradicted by {against} of {len(parts)} comparisons. {missing}".strip()
    if open_ones:
        return NOT_REPRODUCED, f"Undecided in {open_ones} of {len(parts)} comparisons. {missing}".strip()
    return (NOT_TESTABLE, f"{missing} What there is holds.") if missing else (REPRODUCED, "")


def _shown(parts: Sequence[Part], most: int = 6) -> str:
    """The parts in words, those against the claim first where they are too many to list, and their bounds."""
    worst = sorted(parts, key=lambda part: (part.contradicts, not part.holds), reverse=True)
    shown = list(parts) if len(parts) <= most else worst[:most]
    needs = list(dict.fromkeys(part.needs for part in shown))
    if len(needs) == 1:
        said = "; ".join(map(str, shown)) + (f"; and {len(parts) - most} more" if len(parts) > most else "")
        return f"{said}. Needed: {needs[0]}."
    return "; ".join(f"{part} (needed: {part.needs})" for part in shown) + "."


def published_runs(folder: Path | str = PUBLISHED) -> list[Run]:
    """The runs below results/published, by name."""
    return [Run(path) for path in sorted(Path(folder).glob("*")) if path.is_dir()]
