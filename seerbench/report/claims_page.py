"""Write the claims with their judgements: the page CLAIMS.md, and the tally in the README.

Both show what `verdicts.judge` returns, as the report and the notebook do (claims_section.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from seerbench.errors import ResultsError
from seerbench.paths import PAPER
from seerbench.report.evidence import Judgement, Verdict
from seerbench.report.oddities import oddities
from seerbench.report.verdicts import by_scale, headline, judge
from seerbench.rows.store import Run

# The README has the tally between these two comments.
TALLY = ("<!-- tally of claims -->", "<!-- end of tally -->")
COLUMNS = ("claim", "verdict", "measured", "evidence", "command, minutes", "check")


def page(runs: Sequence[Run], folder: Path | str = PAPER) -> str:
    """Return CLAIMS.md as made from these runs. folder: where values.csv and claims.csv of the paper are."""
    judgements = judge(runs, folder=folder)
    names = ", ".join(run.folder.name for run in runs) or "none yet"
    head = (
        "# Claims of the paper\n\n`seerbench check claims --write` writes this page from the runs in "
        f"`results/published` ({names}). `seerbench check claims` fails if page and rows disagree.\n\n"
        f"**{headline(judgements)}.** {by_scale(judgements)}\n\n"
        "Reproduced: every 95% interval lies on the paper's side, and nothing that the claim speaks of is missing. "
        "Contradicted: an interval lies wholly on the other side. Undecided: an interval contains the bound, or a "
        "part of what the claim speaks of was not measured. The evidence of the strongest scale decides, then "
        "that of the longest context, then the latest. All other evidence is listed below the table.\n\n"
        "Claims about time are judged on a GPU at the paper's lengths. Claims about quality are judged on the "
        "model and at the lengths that the evidence names. Scales, the strongest first: paper scale (the paper's "
        "shapes or models; the evidence says where inputs or weights are random), real model (a released "
        "pre-trained model, smaller than the paper's), small scale (models trained here), toy scale. A verdict on "
        "a smaller model says nothing certain about an 8B model. Differences are nats per token on the same "
        "documents. Minutes are the wall time of the steps that measured the rows.\n\n"
        "Claims R1 and on are those of SeerAttention-R (arXiv 2506.08889), the later paper about decoding. Not "
        "measured: presets can measure what the claim speaks of, and no run has done so yet."
    )
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", *map(_line, judgements)]
    others = [
        f"- **{judgement.id}**: {verdict.with_scale}. {verdict.finding} ({verdict.label})"
        for judgement in judgements
        for verdict in judgement.evidence[1:]
    ]
    varied = [
        f"- **{judgement.id}**, {judgement.with_scale}. {judgement.evidence[0].varied}{_other_runs(judgement)}"
        for judgement in judgements
        if judgement.evidence and judgement.evidence[0].varied
    ]
    below = (
        "## What was varied\n\nThe comparisons of each claim that is not reproduced, with one thing changed. They "
        "decide nothing and explain nothing that was not varied; they show in which direction the number moves.\n\n"
        + "\n".join(varied or ["Nothing."])
        + "\n\n## Other evidence\n\n"
        + "\n".join(others or ["None."])
    )
    contradictions = "".join(f"- {text}\n" for text in oddities(folder))
    return "\n\n".join(
        (head.rstrip(), "\n".join(lines), below, "## Where the paper contradicts itself", contradictions)
    )


def _other_runs(judgement: Judgement) -> str:
    """Return the verdicts of the other runs, which may have another model; empty if there are none."""
    others = "; ".join(f"{verdict.with_scale}, run {verdict.run}" for verdict in judgement.evidence[1:])
    return f" Other runs: {others}." if others else ""


def with_tally(readme: str, judgements: Sequence[Judgement]) -> str:
    """Return the README with the tally of these judgements. Raises ResultsError if it has no place for one."""
    return with_part(readme, TALLY, headline(judgements), "the tally of claims")


def with_part(readme: str, between: tuple[str, str], part: str, what: str) -> str:
    """Return the README with `part` between two comments. Raises ResultsError unless it has them once.

    what: the part in words, for the error.
    """
    start, end = between
    pattern = f"(?<={re.escape(start)}).*?(?={re.escape(end)})"
    replaced, places = re.subn(pattern, lambda _: part, readme, flags=re.DOTALL)
    if places != 1:
        raise ResultsError(f"the README has {places} places for {what}, between {start} and {end}, not 1")
    return replaced


def _line(judgement: Judgement) -> str:
    """Return one judgement as a line of the Markdown table."""
    first = judgement.evidence[0] if judgement.evidence else Verdict("", False, "", "", "-")
    commands = "<br>".join(f"`{command}`" for command in first.commands)
    where = "; ".join(text for text in (judgement.place, judgement.scope) if text)
    cells = (
        f"**{judgement.id}** {judgement.claim} ({where})",
        judgement.with_scale,
        judgement.finding,
        first.label,
        f"{commands}, {first.minutes:.1f}" if commands else "-",
        f"`{judgement.check}`",
    )
    return f"| {' | '.join(cells)} |".replace("\n", " ")
