"""Notebooks: execute percent sources, write each as .ipynb and as an HTML page that needs no network.

    notebooks/*.py -> execute -> figures/<preset>/<name>.ipynb and .html

The sources are in jupytext's percent format: plain Python whose differences are readable, and Jupyter opens it
(with jupytext installed). The workflow executes each notebook for the run that it draws. A notebook that is
opened by hand reads the published runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from seerbench.artefacts import style
from seerbench.errors import MissingRows, NotebookError
from seerbench.paths import PUBLISHED, ROOT
from seerbench.reading import first_line, reading
from seerbench.report.page_style import CSS, SCRIPT, wide
from seerbench.report.verdicts import published_runs, scale_rank
from seerbench.rows import requests
from seerbench.rows.store import Run
from seerbench.writing import require_writable, write_bytes

RUN = "SEERBENCH_RUN"  # The environment variable with the folder of rows that a notebook is executed for.
SECONDS = 300  # The time limit of one notebook cell.
FOLDED = "hide-input"  # The tag of notebook cells whose code a page shows folded.
TERMINAL_COLORS = r"\x1b\[[0-9;]*m"  # IPython's tracebacks contain these escape sequences.
PAGE_CSS = """
main { max-width: 60rem; margin: 0 auto } main > * { margin-top: .8rem; margin-bottom: .8rem }
pre { background: var(--card); border-radius: 6px; padding: .6rem .8rem; font-size: .8rem; line-height: 1.4;
  margin: 0; overflow-x: auto }
.code summary { color: var(--faint); font-size: .75rem; cursor: pointer }
.wide table { margin: .4rem; border: 0 } .wide caption { font-weight: 600 } .wide th, .wide td { border: 0;
  border-top: 1px solid var(--line) }
"""


def own_run() -> Run | None:
    """Return the run that a notebook is executed for, or None if it is opened by hand."""
    return Run(os.environ[RUN]) if os.environ.get(RUN) else None


def published() -> list[Run]:
    """Return the published runs, which every notebook reads."""
    return published_runs(PUBLISHED)


def runs() -> list[Run]:
    """Return the runs that a notebook reads: the one that it is executed for, if any, then the published ones."""
    return own_first(own_run(), published())


def own_first(own: Run | None, published: list[Run]) -> list[Run]:
    """Return the run that a notebook is executed for, if any, then the others, the strongest scale first."""
    published = sorted(published, key=lambda run: min(map(scale_rank, run.table("runs").scale_kind)), reverse=True)
    if own is None:
        return published
    return [own, *(run for run in published if run.folder.resolve() != own.folder.resolve())]


def overview(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one line per run: machine, date, commit, scale, and the number of rows of each table."""
    tables = ("cells", "samples", "perplexity", "tasks", "recall", "maps", "training")
    lines = []
    for run in runs:
        steps = run.table("runs")
        if steps.empty:
            continue
        line = {
            "run": run.folder.name,
            "machine": ", ".join(dict.fromkeys(steps.device)),
            "date": steps.started.min()[:10],
            "commit": ", ".join(sorted({str(commit)[:7] for commit in steps.commit})),
            "scale": "; ".join(dict.fromkeys(steps.scale)),
        }
        lines.append(line | {name: len(run.table(name)) for name in tables})
    return pd.DataFrame(lines)


def execute(source: Path, out: Path, run: Path | None = None) -> list[Path]:
    """Execute a percent source, write <out>/<name>.ipynb and .html, and return their paths.

    run: the folder of rows that it reads before the published ones. Raises NotebookError, and writes nothing, if
    a cell raises or takes longer than SECONDS, or if there is no such source.
    """
    # Imported here, since the extra `notebooks` may not be installed.
    import jupytext
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from traitlets.config import Config

    if not source.is_file():
        raise NotebookError(f"no notebook {source}; there are {', '.join(map(str, sources())) or 'none here'}")
    with reading(source, NotebookError, "give a Python file in the percent format"):
        notebook = jupytext.read(source)
    if run is not None:
        Run(run)  # without the folder, every cell would fail
    require_writable(*(out / f"{source.stem}{suffix}" for suffix in (".ipynb", ".html")))
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # jupytext draws random ones, and equal rows must give equal files.
    environment = {**os.environ, **({RUN: str(run.resolve())} if run else {})}
    try:
        with TemporaryDirectory(prefix="seerbench-") as sockets:
            NotebookClient(
                notebook,
                timeout=SECONDS,
                startup_timeout=SECONDS,
                kernel_name="python3",
                record_timing=False,
                resources={"metadata": {"path": "."}},
                # Sockets in their own folder: no port is opened, and notebooks can run at the same time.
                config=Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}}),
            ).execute(env=environment)
    except CellExecutionError as error:
        code = next((cell.source for cell in notebook.cells if _failed(cell)), "")
        text = re.sub(TERMINAL_COLORS, "", f"{error.ename}: {error.evalue}")
        raise NotebookError(f"{source}: {text}, in this cell:\n{code}") from None
    except (CellTimeoutError, DeadKernelError) as error:
        raise NotebookError(f"{source}: {first_line(error)}") from None
    contents = {".ipynb": f"{nbformat.writes(notebook)}\n", ".html": html(notebook, source, run)}
    written = []
    for suffix, content in contents.items():
        path = out / f"{source.stem}{suffix}"
        write_bytes(path, content.encode())
        written.append(path)
    return written


def _failed(cell: Any) -> bool:
    """Return whether a notebook cell raised an error."""
    return any(output.output_type == "error" for output in cell.get("outputs", []))


def html(notebook: Any, source: Path, run: Path | None) -> str:
    """Return an executed notebook as one self-contained page, in the style of the report."""
    from markdown_it import MarkdownIt
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    def colored(code: str) -> str:
        return highlight(code, PythonLexer(), HtmlFormatter())

    def fenced(code: str, language: str, _: str) -> str:
        return colored(code) if language == "python" else ""  # An empty string leaves the block to markdown-it.

    markdown = MarkdownIt("commonmark", {"highlight": fenced}).enable("table").render

    def output_html(output: Any) -> str:
        if output.output_type == "stream":
            return f"<pre>{escape(output.text)}</pre>"
        data = output.data
        if "image/png" in data:
            description = escape(output.metadata.get("image/png", {}).get("alt", ""))
            image = f'<img alt="{description}" src="data:image/png;base64,{data["image/png"].strip()}">'
            return wide(image, description)
        if "text/html" in data:
            return wide(data["text/html"], "table")
        if "text/markdown" in data:
            return f'<div class="label">{markdown(data["text/markdown"])}</div>'
        return f"<pre>{escape(data['text/plain'])}</pre>"

    parts: list[str] = []
    headings: list[str] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = re.sub("<h2>(.*?)</h2>", lambda found: _numbered(found, headings), markdown(cell.source))
            parts.append(text)
        else:
            opened = "" if FOLDED in cell.metadata.get("tags", []) else " open"
            code = f'<details class="code"{opened}><summary>code</summary>{colored(cell.source)}</details>'
            parts += [code, *map(output_html, cell.outputs)]
    light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("default", "github-dark"))
    origin = f"Executed from notebooks/{source.name}" + (f" for the rows of {run}." if run else ".")
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>SeerBench: {escape(source.stem)}</title><style>{light}",
            f"@media (prefers-color-scheme: dark) {{ {dark} }}{CSS}{PAGE_CSS}</style></head><body>",
            f"<main>{parts[0]}{_contents(headings)}{''.join(parts[1:])}",
            f'<p class="label">{escape(origin)}</p></main>',
            f"<script>{SCRIPT}</script></body></html>\n",
        )
    )


def _numbered(found: re.Match[str], headings: list[str]) -> str:
    """Return a heading with an id, and add its text to `headings`."""
    headings.append(found[1])
    return f'<h2 id="part-{len(headings)}">{found[1]}</h2>'


def _contents(headings: Sequence[str]) -> str:
    """Return links to the headings of a page, which stay in sight."""
    links = (f'<a href="#part-{place}">{text}</a>' for place, text in enumerate(headings, 1))
    return f'<nav class="bar" aria-label="Sections">{"".join(links)}</nav>' if headings else ""


def sources() -> list[Path]:
    """Return the paths of this repository's notebooks."""
    return sorted((ROOT / "notebooks").glob("*.py"))


def with_rows(runs: Sequence[Run], table: str, **where: Any) -> tuple[Run, pd.DataFrame]:
    """Return the first run that has rows of `table` with these values in these columns, and the rows.

    Raises MissingRows if no run has any.
    """
    for run in runs:
        rows = requests.rows(run, table)
        for column, value in where.items():
            rows = rows[rows[column] == value]
        if len(rows):
            return run, rows.reset_index(drop=True)
    wanted = ", ".join(f"{column} {value}" for column, value in where.items())
    raise MissingRows(table, f"rows of {table} ({wanted or 'any'})")


def caption(fig: Any, text: str) -> None:
    """Write a caption under a figure of a notebook, as artefacts have it."""
    style.caption(fig, pd.DataFrame({"label": [text], "status": "measured", "reason": None}))


def picture(fig: Any, description: str) -> Any:
    """Return a matplotlib Figure as the output of a notebook cell.

    description: what the figure shows, for readers who cannot see it.
    """
    from IPython.display import Image  # The `notebook` extra may not be installed.

    return Image(style.image(fig, "png"), alt=description)
