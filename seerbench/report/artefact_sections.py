"""Show one artefact in the report: its chart, table or figure, how to read it, and its numbers as CSV.

Figures are embedded as SVG images and data as CSV links (large ones gzipped), so the page works offline. They are
made from the rows, as `seerbench draw` makes the files of an artefact, not from drawn files.
"""

from __future__ import annotations

import base64
import gzip
import importlib
from html import escape
from typing import Any

import pandas as pd

from seerbench.artefacts import ARTEFACTS, Artefact, colors, style, table_format
from seerbench.errors import ConfigError, MissingRows
from seerbench.presets.load import load_preset
from seerbench.report import interactive
from seerbench.report.page_style import wide
from seerbench.rows.store import Run

LARGE = 200_000  # A CSV of more bytes than this is embedded gzipped.
LONG = 40  # A table of more lines is folded below its chart.
# Columns that say where a line comes from. The caption has those that are equal in all lines of a source.
ORIGINS = ["model", "corpus", "text", "windows"]


def heading(name: str) -> str:
    """Return the title of an artefact, with its number in the paper if it has one: "Figure 6: ..."."""
    for prefix, word in (("table", "Table"), ("fig", "Figure")):
        number = name.removeprefix(prefix)
        if number.isdigit():
            return f"{word} {number}: {ARTEFACTS[name].title}"
    return ARTEFACTS[name].title


def module_of(name: str) -> Any:
    """Return the module of an artefact."""
    return importlib.import_module(f"seerbench.artefacts.{name}")


def chart_of(name: str, frame: pd.DataFrame) -> str:
    """Return the interactive chart of an artefact, or nothing if it has none or no points for one."""
    draw = getattr(module_of(name), "chart", None)
    chart = draw(frame) if draw else None
    return "" if chart is None or chart.points.empty else interactive.html(chart, heading(name))


def section(name: str, frame: pd.DataFrame, chart: str) -> str:
    """Return the section of one artefact. chart: what is above its table or figure, as HTML."""
    entry, module = ARTEFACTS[name], module_of(name)
    parts = [f'<section><h3 id="{name}">{escape(heading(name))}</h3>{chart}']
    if entry.kind == "table":
        parts += [wide(table, name) for table in tables(name, frame)]
        notes = [*module.remarks(frame), *table_format.notes(frame)]
    else:
        methods = ", ".join(colors.display(method) for method in frame.method.dropna().unique())
        origins = "; ".join(frame.label.dropna().unique())
        description = f"{name}: {entry.title}. {len(frame)} numbers of {methods}, all in the CSV below. {origins}."
        svg = base64.b64encode(style.image(module.draw(frame), "svg")).decode()
        parts.append(wide(f'<img alt="{escape(description)}" src="data:image/svg+xml;base64,{svg}">', name))
        notes = []  # They are in the picture.
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    below = f'<ul class="label">{items}</ul>' if notes else ""
    return f"{''.join(parts)}{below}<p>{_data(name, frame)}</p></section>"


def tables(name: str, frame: pd.DataFrame) -> list[str]:
    """Return the table of an artefact as HTML, in one or two parts.

    Some tables have the paper and this run in neighbouring lines; the others have the paper after this run.
    """
    module = module_of(name)
    groups = [frame] if getattr(module, "BESIDE_THE_PAPER", False) else _by_source(frame)
    return [table(module.render(group)) for group in groups]


def _by_source(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the lines of this run and those of the paper, without an empty part."""
    parts = [frame[frame.source == source] for source in ("measured", "paper")]
    return [part for part in parts if len(part)]


def table(cells: pd.DataFrame) -> str:
    """Return a frame of strings as an HTML table, folded if it is LONG.

    Columns without content are left out. What all lines of a source have in common is in the caption, so that the
    numbers begin far left.
    """
    cells = cells.drop(columns=[name for name in cells if cells[name].isin([table_format.ABSENT, ""]).all()])
    cells, caption = _with_caption(cells)
    head = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in cells)
    rows = "".join(
        f'<tr><th scope="row">{escape(str(first))}</th>'
        f"{''.join(f'<td>{escape(str(cell))}</td>' for cell in others)}</tr>"
        for first, *others in cells.to_numpy()
    )
    title = f"<caption>{escape(caption)}</caption>"
    body = f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    if len(cells) <= LONG:
        return body
    return f"<details><summary>Table of {len(cells)} lines</summary>{body}</details>"


def _with_caption(cells: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the cells without the columns that the caption replaces, and the caption."""
    if "source" not in cells:
        return cells, "measured"
    origins = [name for name in ORIGINS if name in cells]
    by_source = cells.groupby("source", sort=False)
    common = [name for name in origins if (by_source[name].nunique(dropna=False) == 1).all()]
    texts = [
        f"{source}: {', '.join(str(part) for part in group[common].iloc[0] if part)}" if common else str(source)
        for source, group in by_source
    ]
    alone = ["source"] if len(texts) == 1 else []
    return cells.drop(columns=[*common, *alone]), "; ".join(texts)


def missing(name: str, run: Run, error: MissingRows) -> str:
    """Return a line on an artefact without rows: why it has none."""
    text = f"{escape(heading(name))}. {escape(_why_missing(ARTEFACTS[name], run, error))}"
    return f'<p class="missing" id="{name}">{text}</p>'


def _why_missing(entry: Artefact, run: Run, error: MissingRows) -> str:
    """Return why an artefact has no rows: its preset measures none, or the run is not finished."""
    text = f"This run has no {error.what}."
    try:
        preset = load_preset(run.table("runs").preset.iloc[-1])
    except ConfigError:
        return text  # a preset that is not known here, or the rows of `seerbench compare`
    unmet = preset.rows_for(entry.needs)[1]
    if unmet:
        return f"{text} The preset {preset.name} does not measure this: it has no {', '.join(unmet)}."
    return f"{text} The preset measures them; to finish its run: make figures PRESET={preset.reference}"


def _data(name: str, frame: pd.DataFrame) -> str:
    """Return a link that holds the frame as CSV."""
    data, file, kind = frame.to_csv(index=False).encode(), f"{name}.csv", "text/csv"
    if len(data) > LARGE:
        data, file, kind = gzip.compress(data, mtime=0), f"{file}.gz", "application/gzip"
    link = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return f'<a download="{file}" href="{link}">{file}</a>, {len(data) / 1024:.0f} KiB'
