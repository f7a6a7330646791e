"""The report: one HTML page of a run with verdicts, artefacts and their data, and what the run cost.

Figures are embedded as SVG images and data as CSV links (large ones gzipped), so the page works offline and fetches
nothing. It is made from the rows, as `seerbench draw` makes the artefacts, not from drawn files.
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
from seerbench.artefacts import ARTEFACTS, Artefact, colors, labels, paper_numbers, style, table_format
from seerbench.errors import ConfigError, MissingRows, ResultsError
from seerbench.presets.load import load_preset
from seerbench.report import claims_section, oddities, verdicts
from seerbench.rows.store import Run

LARGE = 200_000  # A CSV of more bytes than this is embedded gzipped.
CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --faint: #57606a; --page: #fff; --line: #d0d7de; --card: #f6f8fa;
  --link: #0550ae; --good: #116329; --bad: #a40e26; --open: #7d4e00 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --faint: #9da7b3; --page: #0d1117; --line: #30363d;
  --card: #161b22; --link: #79c0ff; --good: #56d364; --bad: #ff7b72; --open: #e3b341 } }
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
.reproduced { color: var(--good) } .contradicted { color: var(--bad) } .undecided { color: var(--open) }
.not-testable-here { color: var(--faint) }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px }
.wide:focus-visible, a:focus-visible { outline: 3px solid var(--link) }
.wide img { display: block; width: 100%; min-width: 44rem; background: #fff }
table { border-collapse: collapse; font-size: .85rem } caption { text-align: left; padding: .4rem .6rem }
th, td { padding: .25rem .6rem; text-align: left; white-space: nowrap; border-top: 1px solid var(--line) }
th { background: var(--card) } td.number { text-align: right; font-variant-numeric: tabular-nums }
"""


def html(run: Run, published: Sequence[Run] = (), paper_dir: Path = paths.PAPER) -> str:
    """Return the page of one run.

    The claims are judged by the published runs and this one together (verdicts.py). An artefact without rows shows
    what is missing. Raises ResultsError if the run has no rows at all.
    """
    runs = run.table("runs")
    if runs.empty:
        raise ResultsError(f"{run.folder} has no rows; measure first")
    judgements = verdicts.judge(published, run, paper_dir)
    paper = paper_numbers.paper_values(paper_dir)
    links = "".join(f'<a href="#{name}">{name}</a>' for name in ARTEFACTS)
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1"><title>SeerBench report</title>',
            f"<style>{CSS}</style></head><body><header><h1>SeerBench report</h1>",
            f"<p>{escape(labels.label(run, runs).text)}</p>",
            '<nav aria-label="Sections"><a href="#claims">claims</a><a href="#paper">contradictions</a>',
            f'{links}<a href="#cost">cost</a></nav></header><main>',
            f'<section><h2 id="claims">Claims of the paper</h2>{claims_section.section(judgements)}</section>',
            '<section><h2 id="paper">Where the paper contradicts itself</h2><ul>',
            *(f"<li>{escape(text)}</li>" for text in oddities.oddities(paper_dir)),
            "</ul></section>",
            *(_artefact(name, run, paper) for name in ARTEFACTS),
            _cost(runs),
            "</main></body></html>\n",
        )
    )


def _artefact(name: str, run: Run, paper: pd.DataFrame) -> str:
    """Return the section of one table or figure with its labels and data, or with the rows that it misses."""
    entry, module = ARTEFACTS[name], importlib.import_module(f"seerbench.artefacts.{name}")
    head = f'<section><h2 id="{name}">{name}: {escape(entry.title)}</h2>'
    try:
        frame = module.collect(run, paper)
    except MissingRows as missing:
        return f'{head}<p class="missing">{escape(_why_missing(entry, run, missing))}</p></section>'
    if entry.kind == "table":
        blocks = {source: frame[frame.source == source] for source in ("measured", "paper")}
        body = "".join(_table(module.render(block), source) for source, block in blocks.items() if len(block))
        notes = [*module.remarks(frame), *table_format.notes(frame)]
    else:
        methods = ", ".join(colors.display(method) for method in frame.method.dropna().unique())
        description = f"{name}: {entry.title}. {len(frame)} numbers of {methods}; the CSV below has all of them."
        svg = base64.b64encode(style.image(module.draw(frame), "svg")).decode()
        image = f'<img alt="{escape(description)}" src="data:image/svg+xml;base64,{svg}">'
        body = f'<div class="wide" tabindex="0" role="region" aria-label="{name}">{image}</div>'
        notes = [f"{text}." for text in frame.label.dropna().unique()]
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'{head}{body}<ul class="label">{items}</ul><p>{_data(name, frame)}</p></section>'


def _why_missing(entry: Artefact, run: Run, missing: MissingRows) -> str:
    """Return why an artefact has no rows: its preset measures none, or the run is not finished."""
    text = f"This run has no {missing.what}."
    try:
        preset = load_preset(run.table("runs").preset.iloc[-1])
    except ConfigError:
        return text  # a preset that is not known here, or the rows of `seerbench compare`
    unmet = preset.rows_for(entry.needs)[1]
    if unmet:
        return f"{text} The preset {preset.name} does not measure this: it has no {', '.join(unmet)}."
    return f"{text} The preset measures them; to finish its run: make figures PRESET={preset.reference}"


def _table(cells: pd.DataFrame, title: str) -> str:
    """Return a frame of strings as an HTML table, without the columns that have no content."""
    empty = [name for name in cells if cells[name].isin([table_format.ABSENT, ""]).all()]
    cells = cells.drop(columns=empty)
    head = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in cells)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in line)}</tr>" for line in cells.to_numpy()
    )
    table = f"<table><caption>{escape(title)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="wide" tabindex="0" role="region" aria-label="{escape(title)}">{table}</div><br>'


def _data(name: str, frame: pd.DataFrame) -> str:
    """Return a link that holds the frame as CSV."""
    data, file, kind = frame.to_csv(index=False).encode(), f"{name}.csv", "text/csv"
    if len(data) > LARGE:
        data, file, kind = gzip.compress(data, mtime=0), f"{file}.gz", "application/gzip"
    link = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return f'<a download="{file}" href="{link}">{file}</a>, {len(data) / 1024:.0f} KiB'


def _cost(runs: pd.DataFrame) -> str:
    """Return the section with the wall time of every step."""
    rows = "".join(
        f'<tr><td>{escape(step.step)}</td><td class="number">{step.wall_s:.1f}</td><td>{escape(step.device)}</td>'
        f"<td>{escape(step.started)}</td><td><code>{escape(step.command)}</code></td></tr>"
        for step in runs.itertuples()
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("step", "seconds", "machine", "started", "command"))
    return (
        f'<section><h2 id="cost">Cost of reproduction</h2><p>{len(runs)} steps, {runs.wall_s.sum() / 60:.1f} '
        "minutes of wall time in total; steps that ran at the same time overlap.</p>"
        '<div class="wide" tabindex="0" role="region" aria-label="Cost of reproduction"><table><caption>Wall time '
        f"of each step</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )
