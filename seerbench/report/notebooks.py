"""Notebooks: executed from their percent sources, written as .ipynb and as a page that needs no network.

    notebooks/*.py -> execute -> figures/<preset>/<name>.ipynb and .html

The sources are jupytext's percent format: plain Python that diffs well, and Jupyter opens it (with jupytext
installed). The graph executes each for the run that it draws; by hand a notebook reads the published runs.
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

from seerbench.errors import NotebookError, ResultsError
from seerbench.paths import ROOT
from seerbench.report.html import CSS
from seerbench.rows.store import Run, atomically

RUN = "SEERBENCH_RUN"  # the folder of rows that a notebook is executed for
SECONDS = 300  # a cell may take
FOLDED = "hide-input"  # the tag of cells whose code a page shows folded: how a figure is drawn
COLOURS = r"\x1b\[[0-9;]*m"  # of a terminal, in IPython's tracebacks
PAGE_CSS = """
main { max-width: 60rem; margin: 0 auto } main > * { margin-top: .8rem; margin-bottom: .8rem }
pre { background: var(--card); border-radius: 6px; padding: .6rem .8rem; font-size: .8rem; line-height: 1.4;
  margin: 0; overflow-x: auto }
.code summary { color: var(--faint); font-size: .75rem; cursor: pointer }
.wide table { margin: .4rem; border: 0 } .wide caption { font-weight: 600 } .wide th, .wide td { border: 0;
  border-top: 1px solid var(--line) }
"""


def runs() -> list[Run]:
    """What a notebook reads: the run that it is executed for, if one is named, then the published ones."""
    own = [Path(os.environ[RUN])] if os.environ.get(RUN) else []
    published = sorted(path.parent for path in (ROOT / "results" / "published").glob("*/MANIFEST.json"))
    folders = own + [folder for folder in published if folder.resolve() not in [path.resolve() for path in own]]
    return [Run(folder) for folder in folders]


def overview(found: Sequence[Run]) -> pd.DataFrame:
    """A line a run: machine, date, commit, scale, and how many rows of each table."""
    tables = ("cells", "samples", "perplexity", "tasks", "recall", "maps", "training")
    lines = []
    for run in found:
        about = run.table("runs")
        if about.empty:
            continue
        line = {
            "run": run.folder.name,
            "machine": ", ".join(dict.fromkeys(about.device)),
            "date": about.started.min()[:10],
            "commit": ", ".join(sorted({str(commit)[:7] for commit in about.commit})),
            "scale": "; ".join(dict.fromkeys(about.scale)),
        }
        lines.append(line | {name: len(run.table(name)) for name in tables})
    return pd.DataFrame(lines)


def execute(source: Path, out: Path, run: Path | None = None) -> list[Path]:
    """Run a percent source from its first cell to its last; write <out>/<name>.ipynb and .html.

    run: the folder of rows that it reads first. Raises NotebookError when a cell does, and writes nothing then.
    """
    import jupytext
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from traitlets.config import Config

    if not source.is_file():
        raise NotebookError(f"no notebook {source}; there are {', '.join(map(str, sources()))}")
    notebook = jupytext.read(source)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # theirs are random: the same rows give the same file
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
                # Sockets in a folder of their own: no port is opened, and notebooks side by side do not meet.
                config=Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}}),
            ).execute(env=environment)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise NotebookError(f"{source}: {re.sub(COLOURS, '', str(error))}") from None
    contents = {".ipynb": nbformat.writes(notebook) + "\n", ".html": html(notebook, source, run)}
    written = []
    for suffix, content in contents.items():
        path = out / f"{source.stem}{suffix}"
        atomically(path, lambda part, content=content: part.write_text(content))
        written.append(path)
    return written


def html(notebook: Any, source: Path, run: Path | None) -> str:
    """An executed notebook as one self-contained page, in the report's looks."""
    from markdown_it import MarkdownIt
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    def coloured(code: str) -> str:
        return highlight(code, PythonLexer(), HtmlFormatter())

    def fenced(code: str, language: str, _: str) -> str:
        return coloured(code) if language == "python" else ""  # empty: as markdown-it does it

    markdown = MarkdownIt("commonmark", {"highlight": fenced}).enable("table").render

    def shown(output: Any) -> str:
        if output.output_type == "stream":
            return f"<pre>{escape(output.text)}</pre>"
        data = output.data
        if "image/png" in data:
            about = output.metadata.get("image/png", {}).get("alt", "")
            image = f'<img alt="{escape(about)}" src="data:image/png;base64,{data["image/png"].strip()}">'
            return f'<div class="wide" tabindex="0" role="region" aria-label="{escape(about)}">{image}</div>'
        if "text/html" in data:
            return f'<div class="wide" tabindex="0" role="region" aria-label="table">{data["text/html"]}</div>'
        if "text/markdown" in data:
            return f'<div class="label">{markdown(data["text/markdown"])}</div>'
        return f"<pre>{escape(data['text/plain'])}</pre>"

    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(markdown(cell.source))
        else:
            code = coloured(cell.source)
            opened = "" if FOLDED in cell.metadata.get("tags", []) else " open"
            parts.append(f'<details class="code"{opened}><summary>code</summary>{code}</details>')
            parts += map(shown, cell.outputs)
    light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("default", "github-dark"))
    about = f"Executed from notebooks/{source.name}" + (f" for the rows of {run}." if run else ".")
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>SeerBench: {escape(source.stem)}</title><style>{light}",
            f"@media (prefers-color-scheme: dark) {{ {dark} }}{CSS}{PAGE_CSS}</style></head><body>",
            f'<main>{"".join(parts)}<p class="label">{escape(about)}</p></main></body></html>\n',
        )
    )


def sources() -> list[Path]:
    """The notebooks of this repository."""
    return sorted((ROOT / "notebooks").glob("*.py"))


def with_rows(found: Sequence[Run], table: str, **where: Any) -> tuple[Run, pd.DataFrame]:
    """The first run that has rows of `table` with these values in these columns, and the rows.

    Raises ResultsError if none has.
    """
    for run in found:
        rows = run.table(table)
        for column, value in where.items():
            rows = rows[rows[column] == value]
        if len(rows):
            return run, rows.reset_index(drop=True)
    asked = ", ".join(f"{column} {value}" for column, value in where.items())
    raise ResultsError(f"no run here has rows of {table} ({asked or 'any'})")


def caption(fig: Any, text: str) -> None:
    """The small print below a figure, as artefacts have it."""
    from seerbench.artefacts import style

    style.caption(fig, pd.DataFrame({"label": [text], "status": "measured", "reason": None}))


def picture(fig: Any, about: str) -> Any:
    """A matplotlib Figure as a cell's output. about: what it shows, for those who do not see it."""
    from IPython.display import Image

    from seerbench.artefacts import style

    return Image(style.image(fig, "png"), alt=about)
