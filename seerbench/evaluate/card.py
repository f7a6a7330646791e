"""Make the card of an evaluation from its rows: tables of loss, look-ups and time, for a terminal or a file.

The numbers are those that the artefacts `losses`, `table2` and `methods` (artefacts/) collect, with the method's
lines before those of other methods on the same windows (beside.py). No statistic is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from types import ModuleType

import pandas as pd
from rich.console import Console
from rich.table import Table

from seerbench.artefacts import aggregates, colors, frames, losses, methods, style, table2, table_format
from seerbench.artefacts.paper_numbers import paper_values
from seerbench.evaluate import page
from seerbench.evaluate.beside import FOLDER
from seerbench.evaluate.protocol import LOOKUPS, LOSSES, TIMINGS
from seerbench.methods.block_sparse_kernels import DENSE
from seerbench.rows import requests
from seerbench.rows.schema import DISTURBED
from seerbench.rows.store import Run

OWN = "yours"  # the column `run` of the lines of the evaluation itself
SPEEDUP = "speedup over reference"
STAGES = {"plan": "plan, ms", "attend": "attend, ms", "total": "both, ms"}
RATIO = "speed-up"


@dataclass(frozen=True)
class Section:
    """One table of a card: its title, its cells as strings, and the notes below it."""

    title: str
    cells: pd.DataFrame
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Card:
    """The card of one evaluation: a title, lines on what was evaluated and how it did, tables, their sources."""

    title: str
    facts: tuple[str, ...]
    sections: tuple[Section, ...]
    sources: tuple[str, ...]


def card(run: Run, title: str, facts: Sequence[str], beside: Mapping[str, Path], preset: str) -> Card:
    """Return the card of a run that `seerbench evaluate` wrote.

    Args:
        run: the evaluation.
        title: the name of the method.
        facts: lines on the method and the protocol, which come first.
        beside: table -> folder of the run with comparable rows (beside.write_beside).
        preset: the reference to the preset, for commands.
    """
    loss = _collected(run, "perplexity", losses, beside)
    lookups = _collected(run, "tasks", table2, beside)
    times = _collected(run, "cells", methods, beside)
    sections, missing = [_losses(loss)], {"perplexity": f"perplexity {preset} {LOSSES}"}
    if len(lookups):
        sections.append(_lookups(lookups))
        missing["tasks"] = f"tasks {preset} {LOOKUPS}"
    if len(times):
        sections.append(_times(times))
        contexts = " ".join(f"{context:.0f}" for context in sorted(times.context.unique()))
        missing["cells"] = f"latency {preset} {TIMINGS} {contexts}"
    absent = [f"seerbench {step}" for table, step in missing.items() if table not in beside]
    said = f"Other methods on the same windows are not here; what measures them: {'; '.join(absent)}."
    every = pd.concat([loss, lookups, times])
    sources = [f"{place}: {label}." for place, label in every.groupby("run", sort=False).label.first().items()]
    return Card(title, (*facts, *_places(loss, times)), tuple(sections), (*sources, *[said] * bool(absent)))


def _collected(run: Run, table: str, artefact: ModuleType, beside: Mapping[str, Path]) -> pd.DataFrame:
    """Return the numbers of an artefact with the column `run`: the evaluation's, then those beside it."""
    if requests.rows(run, table).empty:
        return pd.DataFrame(columns=["run", "label"])
    nothing_printed = paper_values().iloc[:0]
    parts = {OWN: artefact.collect(run, nothing_printed)}
    if table in beside:
        other = artefact.collect(Run(run.folder / FOLDER), nothing_printed)
        parts[beside[table].name] = other[~other.method.isin(DENSE)]
    extra = [name for name in parts[OWN] if name not in frames.COLUMNS]
    frame = frames.tidy(*parts.values(), extra=extra)
    frame["run"] = [place for place, part in parts.items() for _ in range(len(part))]
    names = frame.apply(table_format.method_name, axis=1)
    return frame.assign(method_name=names, length=frame.context.map(style.size))


def _losses(frame: pd.DataFrame) -> Section:
    """Return the losses: one line per method and context, one column per requested sparsity."""
    frame = frame[frame.metric == losses.LOSS]
    lines = {"run": "run", "length": "context", "method_name": "method"}
    cells = table_format.grid(frame, lines, "sparsity_requested", _with_realised, "{:.0%}".format)
    note = (
        f"{_of(frame)}: nats per token above dense attention [95% interval, paired by document] (realised "
        "sparsity). 0.01 nats are 1% of perplexity. Columns are requested sparsities."
    )
    return _section("Loss over dense attention", cells, (note, *_reasons(frame)))


def _lookups(frame: pd.DataFrame) -> Section:
    """Return the look-ups: one line per method and context, one column per sparsity and protocol."""
    means = frame[(frame.task == table2.MEAN) & frame.reach.isna()]
    dense = means[means.method == "dense"]
    means = means[means.method != "dense"].sort_values(["last_rows_dense", "sparsity_requested"], kind="stable")
    protocol = means.last_rows_dense.map(lambda rows: f"last {rows:.0f} dense" if rows else "all sparse")
    means = means.assign(column=[f"{s:.0%}, {kind}" for s, kind in zip(means.sparsity_requested, protocol)])
    order = {place: number for number, place in enumerate(frame.run.unique())}
    lines = {"run": "run", "length": "context", "method_name": "method"}
    cells = table_format.grid(means, lines, "column", _with_realised, noted=means)
    cells = cells.sort_values("run", key=lambda runs: runs.map(order), kind="stable")
    tasks = ", ".join(sorted(set(frame.task) - {table2.MEAN}))
    answered = "; ".join(
        f"{table_format.number(line.value, line.low, line.high)} at {line.length}" for line in dense.itertuples()
    )
    note = (
        f"{_of(means)}: percent right, mean over {tasks} [95% interval] (realised sparsity). All sparse: the "
        "method chooses the blocks of every row. Last dense: the last block rows, which ask, read every key, "
        f"within the same budget. Dense attention answers {answered}."
    )
    return _section("Look-ups", cells, (note, *_reasons(means)))


def _times(frame: pd.DataFrame) -> Section:
    """Return the times: one line per method, sparsity and context, one column per stage, and the speed-up."""
    frame = frame[(frame.metric == "latency") | (frame.metric == SPEEDUP)].copy()
    unmeasured = frame.status != "measured"
    frame = frame[~(unmeasured & (frame.metric == SPEEDUP))]
    frame["column"] = frame.stage.map(STAGES).where(frame.metric == "latency", RATIO)
    frame["column"] = frame.column.where(frame.status == "measured", STAGES["total"])
    frame["requested"] = frame.sparsity_requested.map("{:.0%}".format, na_action="ignore").fillna("")
    lines = {"run": "run", "length": "context", "method_name": "method", "requested": "sparsity"}
    cells = table_format.grid(frame, lines, "column", _time)
    shown = [name for name in (*STAGES.values(), RATIO) if name in cells]
    bases = ", ".join(colors.display(base) for base in frame.base.dropna().unique())
    inputs = ", ".join(dict.fromkeys(frame.model.dropna()))
    note = (
        f"Medians of one layer's attention, on q, k and v {inputs}. Speed-up: dense time / method time, planning "
        f"included, in the same rounds [95% interval over rounds]; dense is {bases}. Below 1 the method is slower."
    )
    notes = [note, *_reasons(frame)]
    if (frame.status[frame.run == OWN] == DISTURBED).any():
        notes.append("To time again, run the same command on a quiet machine; nothing else is measured again then.")
    return _section("Time", cells[[*lines.values(), *shown]], tuple(notes))


def _section(title: str, cells: pd.DataFrame, notes: tuple[str, ...]) -> Section:
    """Return a table; a context that all of its lines share is in the title instead of a column."""
    contexts = cells.context.unique()
    if len(contexts) > 1:
        return Section(title, cells, notes)
    return Section(f"{title}, {contexts[0]} tokens", cells.drop(columns="context"), notes)


def _with_realised(entry: pd.Series) -> str:
    return table_format.number(entry.value, entry.low, entry.high) + table_format.in_brackets(
        entry.sparsity_realised
    )


def _time(entry: pd.Series) -> str:
    if entry.metric == "latency":
        return f"{entry.value:.3g}"
    return f"{entry.value:.3g}x [{entry.low:.3g}, {entry.high:.3g}]"


def _of(frame: pd.DataFrame) -> str:
    """Return the model and the text of the numbers."""
    return f"{', '.join(dict.fromkeys(frame.model))} on {', '.join(dict.fromkeys(frame.corpus))}"


def _reasons(frame: pd.DataFrame) -> list[str]:
    """Return the notes that say why cells have no number."""
    return table_format.notes(frame.assign(label=None))[:-1]


def _places(loss: pd.DataFrame, times: pd.DataFrame) -> list[str]:
    """Return one line per requested sparsity: the loss, its place among the methods beside it, and the speed-up.

    It is at the longest context of each. Oracles and random blocks do not compete.
    """
    loss = loss[(loss.metric == losses.LOSS) & (loss.context == loss.context.max())]
    if len(times):
        times = times[(times.metric == SPEEDUP) & (times.run == OWN) & (times.context == times.context.max())]
    said = []
    for sparsity, here in loss.groupby("sparsity_requested"):
        own, others = here[(here.run == OWN) & here.value.notna()], here[(here.run != OWN) & here.value.notna()]
        if own.empty:
            continue
        line = own.iloc[0]
        text = f"Skipping {sparsity:.0%} at {line.length}: a loss of {_interval(line)} nats per token"
        others = others[~aggregates.is_control(others.method)]
        if len(others):
            text += f", place {1 + (others.value < line.value).sum()} of {1 + len(others)} by loss"
        at = times[times.sparsity_requested == sparsity] if len(times) else times
        if len(at) and pd.notna(at.value.iloc[0]):
            text += f"; {_time(at.iloc[0])} the speed of dense attention at {at.length.iloc[0]}"
        said.append(f"{text}.")
    return said


def _interval(entry: pd.Series) -> str:
    return table_format.number(entry.value, entry.low, entry.high)


def in_terminal(content: Card, console: Console) -> None:
    """Print a card with rich; the lines of the evaluation itself are bold."""
    console.rule(f"[bold]{content.title}[/]")
    for fact in content.facts:
        console.print(fact, markup=False, highlight=False)
    for section in content.sections:
        shown = Table(title=section.title, title_justify="left", title_style="bold")
        for name in section.cells:
            shown.add_column(str(name), overflow="fold", min_width=max(map(len, str(name).split())))
        for line in section.cells.to_numpy():
            shown.add_row(*map(str, line), style="bold" if OWN in line else None)
        console.print()
        console.print(shown)
        for note in section.notes:
            console.print(note, style="dim", markup=False, highlight=False)
    console.print()
    for source in content.sources:
        console.print(source, style="dim", markup=False, highlight=False)


def as_markdown(content: Card) -> str:
    """Return a card in Markdown."""
    head, foot = ("".join(f"- {line}\n" for line in lines) for lines in (content.facts, content.sources))
    tables = [table_format.markdown(section.title, section.cells, section.notes) for section in content.sections]
    return f"# {content.title}\n\n{head}\n" + "\n".join(tables) + f"\nWhere the numbers come from:\n\n{foot}"


def as_page(content: Card) -> str:
    """Return a card as a page that needs no network."""
    facts, sources = (_list(lines) for lines in (content.facts, content.sources))
    tables = "".join(
        page.section(section.title, section.cells, section.notes, section.cells.run == OWN)
        for section in content.sections
    )
    return page.page(
        content.title, f"{facts}{tables}<section><h2>Where the numbers come from</h2>{sources}</section>"
    )


def _list(lines: Sequence[str]) -> str:
    return f'<ul class="label">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>'
