"""claims_page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from seerbench.paths import PAPER
from seerbench.report.evidence import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED
from seerbench.report.oddities import oddities
from seerbench.report.verdicts import judge
from seerbench.rows.store import Run


def page(runs: Sequence[Run], folder: Path | str = PAPER) -> str:
    """CLAIMS.md: every verdict in a table, then what the paper says against itself."""
    verdicts = judge(runs, folder)
    counts = ", ".join(
        f"{sum(one.verdict == kind for one in verdicts)} {kind}"
        for kind in (REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE)
    )
    head = (
        "# Claims of the paper\n\n"
        "Written by `seerbench check claims --write` from the runs in `results/published` "
        f"({', '.join(run.folder.name for run in runs) or 'none yet'}); `seerbench check claims` fails where this "
        f"page and the rows disagree. {len(verdicts)} claims: {counts}.\n\n"
        "Reproduced: every 95% interval lies on the paper's side and nothing that the sentence speaks of is "
        "missing. Not reproduced: one lies on the other side (contradicted) or across the bound (undecided). "
        "Sentences about time are judged on a GPU at the paper's lengths, those about quality on the model and "
        "lengths that the evidence names: a verdict at small scale says nothing about an 8B model. Differences are "
        "nats a token on the same documents; minutes are the wall time of the steps that measured the rows.\n\n"
    )
    lines = ["| claim | verdict | measured | evidence | command, minutes | check |", "|---|---|---|---|---|---|"]
    for one in verdicts:
        ran = "<br>".join(f"`{command}`" for command in one.commands)
        cost = f"{ran}, {one.minutes:.1f}" if ran else "-"
        claim = f"**{one.id}** {one.claim} ({'; '.join(text for text in (one.where, one.scope) if text)})"
        lines.append(
            f"| {claim} | {one.shown} | {one.finding} | {one.label or '-'} | {cost} | `{one.check}` |".replace(
                "\n", " "
            )
        )
    against = "".join(f"- {text}\n" for text in oddities(folder))
    return head + "\n".join(lines) + "\n\n## The paper against itself\n\n" + against
