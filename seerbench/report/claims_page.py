"""The page CLAIMS.md: every claim of the paper with its verdict, and the paper's contradictions with itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from seerbench.paths import PAPER
from seerbench.report.evidence import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Verdict
from seerbench.report.oddities import oddities
from seerbench.report.verdicts import judge
from seerbench.rows.store import Run

COLUMNS = ("claim", "verdict", "measured", "evidence", "command, minutes", "check")


def page(runs: Sequence[Run], folder: Path | str = PAPER) -> str:
    """Return CLAIMS.md as made from these runs. folder: where values.csv and claims.csv of the paper are."""
    verdicts = judge(runs, folder)
    counts = ", ".join(
        f"{sum(verdict.verdict == kind for verdict in verdicts)} {kind}"
        for kind in (REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE)
    )
    names = ", ".join(run.folder.name for run in runs) or "none yet"
    head = (
        "# Claims of the paper\n\n`seerbench check claims --write` writes this page from the runs in "
        f"`results/published` ({names}). `seerbench check claims` fails if page and rows disagree. "
        f"{len(verdicts)} claims: {counts}.\n\nReproduced: every 95% interval lies on the paper's side, and "
        "nothing that the claim speaks of is missing. Not reproduced: an interval lies on the other side "
        "(contradicted) or contains the bound (undecided). Claims about time are judged on a GPU at the paper's "
        "lengths. Claims about quality are judged on the model and at the lengths that the evidence names; a "
        "verdict at small scale says nothing about an 8B model. Paper scale means the paper's shapes or models; "
        "the evidence says where inputs or weights are random. Differences are nats per token on the same "
        "documents. Minutes are the wall time of the steps that measured the rows.\n\n"
    )
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", *map(_line, verdicts)]
    contradictions = "".join(f"- {text}\n" for text in oddities(folder))
    return head + "\n".join(lines) + "\n\n## Where the paper contradicts itself\n\n" + contradictions


def _line(verdict: Verdict) -> str:
    """Return one verdict as a line of the Markdown table."""
    commands = "<br>".join(f"`{command}`" for command in verdict.commands)
    cells = (
        f"**{verdict.id}** {verdict.claim} ({'; '.join(text for text in (verdict.place, verdict.scope) if text)})",
        verdict.with_scale,
        verdict.finding,
        verdict.label or "-",
        f"{commands}, {verdict.minutes:.1f}" if commands else "-",
        f"`{verdict.check}`",
    )
    return f"| {' | '.join(cells)} |".replace("\n", " ")
