"""Show the claims with their judgements as HTML, in the report and in the notebook `results`.

Each claim has the verdict of its strongest evidence, and all other evidence below it. The colors of the verdicts
are in the style sheet of both pages (page_style.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from seerbench.report.evidence import Judgement, Verdict
from seerbench.report.verdicts import by_scale, headline

LEGEND = (
    "Numbers are followed by their 95% interval in brackets. A loss in nats per token is the change of log "
    "perplexity: 0.01 nats are 1%. Contradicted: the interval excludes what the paper says. Undecided: it does "
    "not, or a part of what the claim speaks of was not measured."
)


def section(judgements: Sequence[Judgement]) -> str:
    """Return the claims at a glance, then one article per claim, folded."""
    summary = "<summary>The evidence for each claim</summary>"
    return f"{_glance(judgements)}<details>{summary}{''.join(map(_article, judgements))}</details>"


def _glance(judgements: Sequence[Judgement]) -> str:
    """Return the tally and a list of all claims with their verdicts and links to their articles."""
    links = (
        f'<li><a href="#{judgement.id}" class="{_css_class(judgement.verdict)}">{judgement.id}</a> '
        f"{escape(judgement.verdict)}: {escape(judgement.claim)}</li>"
        for judgement in judgements
    )
    parts = [
        f"<p><strong>{escape(headline(judgements))}.</strong> {escape(by_scale(judgements))}</p>",
        f"<p>{escape(_own_run(judgements))} {LEGEND}</p>",
        f'<ul class="glance">{"".join(links)}</ul>',
    ]
    return "".join(parts)


def _own_run(judgements: Sequence[Judgement]) -> str:
    """Return how the reader's own run takes part in the tally."""
    own = [(each, place) for each in judgements for place, verdict in enumerate(each.evidence) if verdict.own]
    decided = [judgement.id for judgement, place in own if place == 0]
    beside = [judgement.id for judgement, place in own if place > 0]
    if decided:
        return f"This run decides {', '.join(decided)}; on the other claims, published runs are stronger evidence."
    if beside:
        return f"Published runs decide; what this run says on {', '.join(beside)} is listed as other evidence."
    return "All of it is from published runs, as in CLAIMS.md."


def _article(judgement: Judgement) -> str:
    """Return one claim with its judgement and its evidence."""
    where = "; ".join(text for text in (judgement.place, judgement.scope) if text)
    lines = [f"<h3>{judgement.id}: {escape(judgement.claim)} <small>({escape(where)})</small></h3>"]
    if judgement.evidence:
        lines.append(_evidence(judgement.evidence[0]))
        if judgement.evidence[0].varied:
            varied = f"With one thing changed, which decides nothing. {judgement.evidence[0].varied}"
            lines.append(f'<p class="label">{escape(varied)}</p>')
    else:
        lines.append(f"<p>{_strong(judgement.verdict, judgement.with_scale)}<br>{escape(judgement.finding)}</p>")
    others = "".join(f"<li>{_evidence(verdict)}</li>" for verdict in judgement.evidence[1:])
    if judgement.evidence and judgement.own_lacks:
        lacks = f"This run cannot judge the claim: it has no {judgement.own_lacks}."
        others += f'<li><p class="label">{escape(lacks)}</p></li>'
    if others:
        lines.append(f'<p class="label">Other evidence, which does not decide:</p><ul>{others}</ul>')
    lines.append(f'<p class="label">Judged in {escape(judgement.check)}</p>')
    return f'<article id="{judgement.id}">{"".join(lines)}</article>'


def _evidence(verdict: Verdict) -> str:
    """Return the verdict of one run with what it rests on."""
    origin = f"{'This run' if verdict.own else 'Published run'} {verdict.run}: {verdict.label}"
    if verdict.commands:
        origin += f"; {' and '.join(verdict.commands)}, {verdict.minutes:.1f} minutes"
    return (
        f"<p>{_strong(verdict.verdict, verdict.with_scale)}<br>{escape(verdict.finding)}</p>"
        f'<p class="label">{escape(origin)}</p>'
    )


def _strong(verdict: str, text: str) -> str:
    return f'<strong class="{_css_class(verdict)}">{escape(text)}</strong>'


def _css_class(verdict: str) -> str:
    return verdict.replace(" ", "-")
