"""Write pages of tables: one self-contained HTML file that fetches nothing, whose tables sort on a click."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import pandas as pd

from seerbench.artefacts import table_format
from seerbench.report.page_style import CSS

# How a cell begins that says why it has no number.
WITHOUT_NUMBER = ("missing", "refused", "failed", "disturbed", "out of memory")
LONG = 50  # characters of a cell above which its text may take several lines
STYLE = """
h1 { overflow-wrap: anywhere } caption { font-weight: 600 }
th button { all: unset; cursor: pointer; font-weight: 600 }
th button:focus-visible { outline: 3px solid var(--link) }
th[aria-sort=ascending] button::after { content: " \\2191" }
th[aria-sort=descending] button::after { content: " \\2193" }
tr.own td { font-weight: 600 } .hint { color: var(--faint); font-size: .85rem; margin: .2rem 0 }
details { border-top: 1px solid var(--line); padding: .4rem 0 } summary { cursor: pointer; font-size: 1.2rem }
th { white-space: normal; vertical-align: bottom } td.long { white-space: normal; min-width: 12rem }
td.missing { color: var(--faint) }
@media (max-width: 40rem) { td { white-space: normal } td:not(:first-child) { min-width: 4rem } }
"""
# Say which tables scroll sideways. Sort the lines of a table by a column: by number where its cells begin with one,
# else by text; cells without a number last.
SCRIPT = """
const hints = () => {
  for (const table of document.querySelectorAll(".wide"))
    table.previousElementSibling.hidden = table.scrollWidth <= table.clientWidth
}
hints()
addEventListener("resize", hints)
for (const board of document.querySelectorAll("details")) board.addEventListener("toggle", hints)
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.closest("th"), table = head.closest("table"), column = head.cellIndex
  const down = head.getAttribute("aria-sort") === "ascending"
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort")
  head.setAttribute("aria-sort", down ? "descending" : "ascending")
  const value = line => {
    const cell = line.cells[column], number = parseFloat(cell.textContent)
    if (cell.classList.contains("missing") || !cell.textContent) return null
    return isNaN(number) ? cell.textContent : number
  }
  const lines = [...table.tBodies[0].rows].map(line => [value(line), line])
  lines.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null)
    const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b))
    return down ? -order : order
  })
  for (const [, line] of lines) table.tBodies[0].append(line)
})
"""


def page(title: str, body: str) -> str:
    """Return a whole page; `body` is HTML."""
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{CSS}{STYLE}</style></head><body>",
            f"<header><h1>{escape(title)}</h1></header><main>{body}</main><script>{SCRIPT}</script></body></html>\n",
        )
    )


def section(title: str, cells: pd.DataFrame, notes: Sequence[str], own: Sequence[bool] = ()) -> str:
    """Return a section of a page: a heading, a table that sorts, and notes.

    Args:
        title: the heading.
        cells: strings, one line per row of the table.
        notes: lines of text below the table.
        own: for each line, whether it is the reader's own, which is shown bold.
    """
    head = "".join(f'<th scope="col"><button>{escape(str(name))}</button></th>' for name in cells)
    lines = []
    for number, line in enumerate(cells.to_numpy()):
        mark = ' class="own"' if number < len(own) and own[number] else ""
        lines.append(f"<tr{mark}>{''.join(map(_cell, line))}</tr>")
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return (
        f"<section><h2>{escape(title)}</h2>"
        '<p class="hint">A click on a heading sorts.</p>'
        '<p class="hint scroll">The table scrolls sideways.</p>'
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(title)}"><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
        f'<ul class="label">{items}</ul></section>'
    )


def _cell(text: object) -> str:
    """Return a cell. It is faint if it has no number, and last whichever way its column is sorted."""
    empty = text == table_format.ABSENT or str(text).startswith(WITHOUT_NUMBER)
    kind = "missing" if empty else "long" if len(str(text)) > LONG else ""
    return f"<td{f' class={kind!r}' if kind else ''}>{escape(str(text))}</td>"
