"""Judge each claim of the paper, a sentence with a number or an ordering, from measured rows.

A check turns the rows of a run into comparisons: numbers with their 95% intervals, each with the side of a bound on
which the paper puts it. Each run that can judge a claim has its own verdict:

- reproduced: every interval lies wholly on the paper's side, and nothing that the claim speaks of is missing.
- contradicted: an interval lies wholly on the other side, so the claim does not hold for what was measured.
- undecided: an interval contains the bound, or a part of what the claim speaks of was not measured.
- not testable here: no run has rows that the claim is about.
- not measured: the same, of a claim of SeerAttention-R, the later paper about decoding. Presets can measure what
  its claims speak of, and no run has done so yet.

Only what the paper says can be contradicted. Where it has a word instead of a number, such as "same latency", the
bound is ours, and a number beyond it leaves the claim undecided. The paper prints perplexities with two decimals,
so a difference that vanishes in them contradicts nothing.

Claims about time need rows of a GPU at the paper's contexts, against FlashAttention-2. Claims about quality are
judged on any model. At the paper's scale they need the paper's contexts; a smaller model is judged at those that it
has, and the label says how large it is.

The judgement on a claim is the verdict of its strongest evidence, and all other evidence is listed below it:

1. The strongest scale decides (schema.SCALE_KINDS): the paper's shapes or models before a released pre-trained
   model, that before small models that were trained here, and these before toys.
2. At equal scale a published run decides before the reader's own, so that a page says the same wherever it is made.
   An own run counts like any other once it is published.
3. Among these the run decides that reaches the longest context, since the paper is about long contexts, and then
   the latest one, since the code improves.

Where a claim is not reproduced, the pages also say what the run varied: the comparison with one thing changed, such
as the training budget of the gate. That decides nothing; it shows in which direction the number moves.

The report, the notebook `results`, CLAIMS.md and the README all show what `judge` returns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from seerbench.artefacts import labels, paper_numbers
from seerbench.errors import MissingRows, ResultsError
from seerbench.paths import PAPER, PUBLISHED
from seerbench.report import checks_decode, checks_quality, checks_time
from seerbench.report.evidence import (
    CONTRADICTED,
    KINDS,
    NOT_MEASURED,
    NOT_TESTABLE,
    REPRODUCED,
    SCALES,
    UNDECIDED,
    Check,
    Comparison,
    Evidence,
    Judgement,
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
    "R1": checks_decode.kernel_speedup,
    "R2": checks_decode.near_lossless,
    "R3": checks_decode.more_is_better,
    "R4": checks_decode.compressed_keys,
}
SECOND = "R"  # The ids of SeerAttention-R's claims begin with it.
LISTED = 6  # A finding lists at most this many comparisons.


def paper_claims(folder: Path | str = PAPER) -> pd.DataFrame:
    """Return the claims of `<folder>/claims.csv`. Raises ResultsError if they are not those of CHECKS."""
    claims = pd.read_csv(Path(folder) / "claims.csv", dtype=str, keep_default_na=False)
    if list(claims.id) != list(CHECKS):
        raise ResultsError(
            f"{folder}/claims.csv has the claims {', '.join(claims.id)}; checks: {', '.join(CHECKS)}"
        )
    return claims


def judge(published: Iterable[Run], own: Run | None = None, folder: Path | str = PAPER) -> list[Judgement]:
    """Return one judgement per claim, by the rules of this module.

    own: the reader's own run. It is left out if all of it has been published.
    """
    runs = [(run, False) for run in published]
    first, second = paper_numbers.paper_values(folder), paper_numbers.paper_values_r(folder)
    executions = [set(run.table("runs").run_id) for run, _ in runs]
    if own is not None and not any(set(own.table("runs").run_id) <= known for known in executions):
        runs.append((own, True))
    return [
        _judge(claim, runs, second if claim.id.startswith(SECOND) else first)
        for claim in paper_claims(folder).itertuples()
    ]


def headline(judgements: Sequence[Judgement]) -> str:
    """Return the tally in one line, that of SeerAttention-R behind that of SeerAttention.

    "17 claims: 8 reproduced, 4 contradicted, 4 undecided, 1 not testable here; 4 of SeerAttention-R: 4 not
    measured"
    """
    first = [judgement for judgement in judgements if not judgement.id.startswith(SECOND)]
    second = [judgement for judgement in judgements if judgement.id.startswith(SECOND)]
    counts, others = (Counter(judgement.verdict for judgement in part) for part in (first, second))
    of_first = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if kind != NOT_MEASURED)
    of_second = ", ".join(f"{others[kind]} {kind}" for kind in KINDS if others[kind])
    return f"{len(first)} claims: {of_first}; {len(second)} of SeerAttention-R: {of_second}"


def by_scale(judgements: Sequence[Judgement]) -> str:
    """Return the tally of each scale, the strongest first, in one sentence; empty if nothing was judged."""
    of_scale: dict[str | None, Counter[str]] = {}
    for judgement in judgements:
        for verdict in judgement.evidence[:1]:
            of_scale.setdefault(verdict.scale_kind, Counter())[verdict.verdict] += 1
    parts = [
        f"{SCALES[scale] if scale else 'unknown scale'}: "
        + ", ".join(f"{of_scale[scale][kind]} {kind}" for kind in KINDS if of_scale[scale][kind])
        for scale in sorted(of_scale, key=scale_rank, reverse=True)
    ]
    return f"{'; '.join(parts).capitalize()}." if parts else ""


def _judge(claim: Any, runs: Sequence[tuple[Run, bool]], paper: pd.DataFrame) -> Judgement:
    check = CHECKS[claim.id]
    ranked, lacking, own_lacks = [], [], ""
    for run, own in runs:
        try:
            evidence = check(run, paper)
        except MissingRows as missing:
            lacking.append(missing.what)
            own_lacks = missing.what if own else own_lacks
        else:
            steps = run.table("runs")
            steps = steps[steps.run_id.isin(evidence.rows.run_id.unique())]
            ranked.append((_rank(evidence, steps, own), _verdict(run, own, evidence, steps)))
    return Judgement(
        id=claim.id,
        claim=claim.claim,
        place=claim.where,
        scope=claim.scope,
        check=f"{check.__module__.replace('.', '/')}.py, {check.__name__}",
        evidence=[verdict for _, verdict in sorted(ranked, key=lambda each: each[0], reverse=True)],
        lacking="; ".join(dict.fromkeys(lacking)) or "any run",
        own_lacks=own_lacks,
        without_rows=NOT_MEASURED if claim.id.startswith(SECOND) else NOT_TESTABLE,
    )


def _rank(evidence: Evidence, steps: pd.DataFrame, own: bool) -> tuple[int, bool, float, str]:
    """Return what decides between runs, by the rules of this module: the largest value decides."""
    smallest_scale = min(scale_rank(scale) for scale in steps.scale_kind)
    return smallest_scale, not own, evidence.rows.context.max(), steps.started.max()


def scale_rank(scale: object) -> int:
    """Return the place of a value of runs.scale_kind; a missing one is the smallest."""
    return SCALE_KINDS.index(scale) if scale in SCALE_KINDS else -1


def _verdict(run: Run, own: bool, evidence: Evidence, steps: pd.DataFrame) -> Verdict:
    """Return what one run says. steps: the executions that measured the rows of the evidence."""
    verdict, reason = decide(evidence)
    kinds = [kind for kind in SCALE_KINDS if kind in set(steps.scale_kind)]
    return Verdict(
        run=run.folder.name,
        own=own,
        verdict=verdict,
        finding=" ".join(text for text in (reason, _in_words(evidence.comparisons), evidence.note) if text),
        label=labels.label(run, evidence.rows).text,
        scale_kind=kinds[0] if kinds else None,
        commands=list(dict.fromkeys(steps.command)),
        minutes=steps.wall_s.sum() / 60,
        comparisons=evidence.comparisons,
        varied="" if verdict == REPRODUCED else _variations_in_words(evidence),
    )


def decide(evidence: Evidence) -> tuple[str, str]:
    """Return (verdict, reason) by the rules of this module. The reason of a reproduced claim is empty."""
    comparisons = evidence.comparisons
    against = sum(comparison.contradicts for comparison in comparisons)
    undecided = sum(not comparison.holds and not comparison.contradicts for comparison in comparisons)
    missing = f"Not measured: {', '.join(evidence.missing)}." if evidence.missing else ""
    if not comparisons:
        return NOT_TESTABLE, missing
    if against:
        return CONTRADICTED, f"{_share('Contradicted by', against, len(comparisons))} {missing}".strip()
    if undecided:
        return UNDECIDED, f"{_share('Undecided in', undecided, len(comparisons))} {missing}".strip()
    return (UNDECIDED, f"What was measured holds. {missing}") if missing else (REPRODUCED, "")


def _share(words: str, count: int, total: int) -> str:
    """Return which share of the comparisons a verdict rests on; empty for a single one, which follows anyway."""
    return f"{words} {count} of {total} comparisons." if total > 1 else ""


def _in_words(comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons with their bounds. Of more than LISTED, those against the claim come first."""
    if len(comparisons) <= LISTED:
        listed = list(comparisons)
    else:
        listed = sorted(comparisons, key=lambda each: (each.contradicts, not each.holds), reverse=True)[:LISTED]
    bounds: dict[tuple, list[Comparison]] = {}
    for comparison in listed:
        bound = comparison.bound, comparison.above, comparison.unit, comparison.rounding, comparison.ours
        bounds.setdefault(bound, []).append(comparison)
    texts = []
    for group in bounds.values():
        unclear = next((comparison for comparison in group if not comparison.holds), group[0])
        requirement = unclear.requirement(max(comparison.decimals for comparison in group))
        texts.append(f"{'; '.join(map(str, group))}. Required: {requirement}.")
    rest = len(comparisons) - len(listed)
    return " ".join(texts) + (f" {rest} more comparisons are not listed." if rest else "")


def _variations_in_words(evidence: Evidence) -> str:
    """Return what was varied and found, with one sentence per kind of variation; empty if nothing was varied."""
    sentences = (f"{kind}: {'; '.join(map(str, found))}." for kind, found in evidence.varied.items())
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def published_runs(folder: Path | str = PUBLISHED) -> list[Run]:
    """Return the published runs in the order of their names."""
    return [Run(path) for path in sorted(Path(folder).glob("*")) if path.is_dir()]
