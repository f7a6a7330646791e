"""The report: one HTML page of a run, complete in itself: verdicts, artefacts with their data, what it cost.

Figures are embedded as SVG images and data as CSV links (large ones gzipped), so the page works offline
and nothing is fetched. It is drawn from the rows, as `seerbench draw` does, not from drawn files.
"""

from __future__ import annotations

import base64
import gzip
import importlib
from collections.abc import Sequence
from html import escape
from pathlib import Path

import pandas as pd

from seerbench import paths
from seerbench.artefacts import ARTEFACTS, colors, frames, style, table_format
from seerbench.errors import ResultsError
from seerbench.report import oddities, verdicts
from seerbench.report.evidence import NOT_TESTABLE, Verdict
from seerbench.rows.store import Run

LARGE = 200_000  # bytes of CSV beyond which it is embedded gzipped
CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --faint: #57606a; --page: #fff; --line: #d0d7de; --card: #f6f8fa;
  --link: #0550ae; --good: #116329; --bad: #a40e26 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --faint: #9da7b3; --page: #0d1117; --line: #30363d;
  --card: #161b22; --link: #79c0ff; --good: #56d364; --bad: #ff7b72 } }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--page) }
h1 { font-size: 1.6rem } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line) } a { color: var(--link) }
small, .label { color: var(--faint); font-size: .85rem; overflow-wrap: anywhere }
nav a { display: inline-block; padding: .3rem .6rem .3rem 0 }
.glance { list-style: none; padding: 0; columns: 22rem; font-size: .85rem } .glance li { margin: .15rem 0;
  break-inside: avoid } .glance a { font-weight: 600 }
ul.label { padding-left: 1.2rem }
article { border: 1px solid var(--line); border-radius: 6px; padding: .6rem 1rem; margin: .7rem 0 }
article h3 { margin: 0; font-size: 1rem } article p { margin: .3rem 0; overflow-wrap: anywhere }
.reproduced { color: var(--good) } .not-reproduced { color: var(--bad) } .not-testable-here { color: var(--faint) }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px }
.wide:focus-visible, a:focus-visible { outline: 3px solid var(--link) }
.wide img { display: block; width: 100%; min-width: 44rem; background: #fff }
table { border-collapse: collapse; font-size: .85rem } caption { text-align: left; padding: .4rem .6rem }
th, td { padding: .25rem .6rem; text-align: left; white-space: nowrap; border-top: 1px solid var(--line) }
th { background: var(--card) } td.number { text-align: right; font-variant-numeric: tabular-nums }
"""


def html(run: Run, published: Sequence[Run] = (), paper_dir: Path = paths.PAPER) -> str:
    """The page of one run. Claims that it cannot judge show the verdict of `published`, if those can.

    Raises ResultsError if the run has no rows at all; an artefact without rows is named with its reason.
    """
    runs = run.table("runs")
    if runs.empty:
        raise ResultsError(f"{run.folder} holds no rows; measure first")
    own = verdicts.judge([run], paper_dir)
    others = verdicts.judge(published, paper_dir)
    shown = [mine if mine.verdict != NOT_TESTABLE else other for mine, other in zip(own, others)]
    paper = frames.paper_values(paper_dir)
    label = frames.label(run, runs).removeprefix("measured: ")
    names = "".join(f'<a href="#{name}">{name}</a>' for name in ARTEFACTS)
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1"><title>SeerBench report</title>',
            f"<style>{CSS}</style></head><body><header><h1>SeerBench report</h1><p>{escape(label)}</p>",
            '<nav aria-label="Sections"><a href="#claims">claims</a><a href="#paper">the paper against itself</a>',
            f'{names}<a href="#cost">cost</a></nav></header><main>',
            _claims(shown, own),
            '<section><h2 id="paper">The paper against itself</h2><ul>',
            *(f"<li>{escape(text)}</li>" for text in oddities.oddities(paper_dir)),
            "</ul></section>",
            *(_artefact(name, run, paper) for name in ARTEFACTS),
            _cost(runs),
            "</main></body></html>\n",
        )
    )


def _claims(shown: Sequence[Verdict], own: Sequence[Verdict]) -> str:
    counts = pd.Series([one.verdict for one in shown]).value_counts()
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    parts = [f'<section><h2 id="claims">Claims</h2><p>{len(shown)} claims of the paper: {said}.</p>']
    links = (
        f'<li><a href="#{one.id}" class="{one.verdict.replace(" ", "-")}">{one.id}</a> {escape(one.verdict)}: '
        f"{escape(one.claim)}</li>"
        for one in shown
    )
    parts.append(f'<ul class="glance">{"".join(links)}</ul>')
    for one, mine in zip(shown, own):
        kind = one.verdict.replace(" ", "-")
        elsewhere = "" if one is mine or not one.label else "A published run: "
        evidence = elsewhere + one.label
        if one.commands:
            evidence += f"; {' and '.join(one.commands)}, {one.minutes:.1f} minutes"
        judged = f"Judged in {one.check}"
        where = "; ".join(text for text in (one.where, one.scope) if text)
        parts.append(
            f'<article id="{one.id}"><h3>{one.id}: {escape(one.claim)} <small>({escape(where)})</small></h3>'
            f'<p><strong class="{kind}">{escape(one.shown)}</strong><br>{escape(one.finding)}</p>'
            f'<p class="label">{"<br>".join(escape(text) for text in (evidence, judged) if text)}</p></article>'
        )
    return "".join(parts) + "</section>"


def _artefact(name: str, run: Run, paper: pd.DataFrame) -> str:
    """One table or figure with its label and data; one that the run has no rows for says so."""
    entry, module = ARTEFACTS[name], importlib.import_module(f"seerbench.artefacts.{name}")
    head = f'<section><h2 id="{name}">{name}: {escape(entry.title)}</h2>'
    try:
        frame = module.collect(run, paper)
    except ResultsError as error:
        return f"{head}<p>{escape(str(error))}</p></section>"
    if entry.kind == "table":
        blocks = {source: frame[frame.source == source] for source in ("measured", "paper")}
        body = "".join(_table(module.render(block), source) for source, block in blocks.items() if len(block))
        notes = [*module.remarks(frame), *table_format.notes(frame)]
    else:
        methods = ", ".join(colors.display(method) for method in frame.method.dropna().unique())
        about = f"{name}: {entry.title}. {len(frame)} numbers of {methods}; all of them are in the CSV below."
        svg = base64.b64encode(style.image(module.draw(frame), "svg")).decode()
        image = f'<img alt="{escape(about)}" src="data:image/svg+xml;base64,{svg}">'
        body = f'<div class="wide" tabindex="0" role="region" aria-label="{name}">{image}</div>'
        notes = [f"{text}." for text in frame.label.dropna().unique()]
    said = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'{head}{body}<ul class="label">{said}</ul><p>{_data(name, frame)}</p></section>'


def _table(shown: pd.DataFrame, title: str) -> str:
    """A grid as an HTML table; columns of which this block says nothing are left out."""
    empty = [name for name in shown if shown[name].isin([table_format.ABSENT, ""]).all()]
    shown = shown.drop(columns=empty)
    head = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in shown)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in line)}</tr>" for line in shown.to_numpy()
    )
    table = f"<table><caption>{escape(title)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="wide" tabindex="0" role="region" aria-label="{escape(title)}">{table}</div><br>'


def _data(name: str, frame: pd.DataFrame) -> str:
    data, file, kind = frame.to_csv(index=False).encode(), f"{name}.csv", "text/csv"
    if len(data) > LARGE:
        data, file, kind = gzip.compress(data, mtime=0), f"{file}.gz", "application/gzip"
    link = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return f'<a download="{file}" href="{link}">{file}</a>, {len(data) / 1024:.0f} KiB'


def _cost(runs: pd.DataFrame) -> str:
    """Every step of the run with its wall time; steps that ran side by side overlap."""
    rows = "".join(
        f'<tr><td>{escape(one.step)}</td><td class="number">{one.wall_s:.1f}</td><td>{escape(one.device)}</td>'
        f"<td>{escape(one.started)}</td><td><code>{escape(one.command)}</code></td></tr>"
        for one in runs.itertuples()
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("step", "seconds", "machine", "started", "command"))
    return (
        f'<section><h2 id="cost">Cost of reproduction</h2><p>{len(runs)} steps, {runs.wall_s.sum() / 60:.1f} '
        "minutes of wall time added up; steps side by side overlap.</p>"
        '<div class="wide" tabindex="0" role="region" aria-label="Cost of reproduction"><table><caption>Wall time '
        f"of each step</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )
