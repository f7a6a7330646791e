"""Make the card of an evaluation from its rows: tables of loss, look-ups, RULER, time, for a terminal or a file.

The numbers are those that the artefacts `losses`, `table2`, `ruler` and `methods` (artefacts/) collect, with the
method's lines before those of other methods on the same windows (beside.py). No statistic is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from seerbench.artefacts import aggregates, colors, frames, losses, methods, ruler, style, table2, table_format
from seerbench.artefacts.paper_numbers import paper_values
from seerbench.evaluate import page
from seerbench.evaluate.beside import FOLDER, LOOKUP_PART, LOSS_PART, PARTS, RULER_PART, TIME_PART, rows_of
from seerbench.methods.block_sparse_kernels import DENSE
from seerbench.rows.schema import DISTURBED
from seerbench.rows.store import Run

OWN = "yours"  # the column `run` of the lines of the evaluation itself
SPEEDUP = "speedup over reference"
STAGES = {"plan": "plan, ms", "attend": "attend, ms", "total": "both, ms"}
RATIO, PEAK = "speed-up", "peak, MiB"
# part of an evaluation -> the artefact that collects its numbers, and the command of the step that measures it
ARTEFACTS = {LOSS_PART: losses, LOOKUP_PART: table2, RULER_PART: ruler, TIME_PART: methods}
STEPS = {LOSS_PART: "perplexity", LOOKUP_PART: "tasks", RULER_PART: "tasks", TIME_PART: "latency"}


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
        beside: part -> folder of the run with comparable rows (beside.write_beside).
        preset: the reference to the preset, for commands.
    """
    found = {part: _collected(run, part, beside) for part in PARTS}
    found = {part: frame for part, frame in found.items() if len(frame)}
    makes = {LOSS_PART: _losses, LOOKUP_PART: _lookups, RULER_PART: _ruler, TIME_PART: _times}
    sections = [makes[part](frame) for part, frame in found.items()]
    absent = [_command(part, frame, preset) for part, frame in found.items() if part not in beside]
    said = f"Other methods on the same windows are not here; what measures them: {'; '.join(absent)}."
    every = pd.concat(found.values())
    sources = [f"{place}: {label}." for place, label in every.groupby("run", sort=False).label.first().items()]
    places = _places(found[LOSS_PART], found.get(TIME_PART, pd.DataFrame()))
    return Card(title, (*facts, *places), tuple(sections), (*sources, *[said] * bool(absent)))


def _command(part: str, frame: pd.DataFrame, preset: str) -> str:
    """Return the command of the step that measures a part of the protocol for the methods of a preset."""
    name = PARTS[part][1][0]
    at = [f"{context:.0f}" for context in sorted(frame.context.unique())] if part == TIME_PART else []
    return " ".join(["seerbench", STEPS[part], preset, name, *at])


def _collected(run: Run, part: str, beside: Mapping[str, Path]) -> pd.DataFrame:
    """Return the numbers of a part with the column `run`: the evaluation's, then those beside it."""
    if rows_of(run, part).empty:
        return pd.DataFrame()
    artefact, nothing_printed = ARTEFACTS[part], paper_values().iloc[:0]
    parts = {OWN: artefact.collect(run, nothing_printed)}
    if part in beside:
        other = artefact.collect(Run(run.folder / FOLDER), nothing_printed)
        parts[beside[part].name] = other[~other.method.isin(DENSE)]
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
    tasks = ", ".join(sorted(set(frame.task) - {table2.MEAN}))
    return _scores("Look-ups", means, f"percent right, mean over {tasks}")


def _ruler(frame: pd.DataFrame) -> Section:
    """Return RULER's means: one line per method and length, one column per sparsity and protocol."""
    means, tasks = frame[frame.task == ruler.MEAN], set(frame.task) - set(ruler.MEANS)
    what = f"score in percent, mean over {len(tasks)} of RULER's 13 tasks; answers are decoded with dense attention"
    return _scores("RULER", means, what)


def _scores(title: str, means: pd.DataFrame, what: str) -> Section:
    """Return a table of scores; `means` has one line per method, context, sparsity and protocol.

    what: what the numbers are.
    """
    order = {place: number for number, place in enumerate(means.run.unique())}
    dense = means[means.method == "dense"]
    means = means[means.method != "dense"].sort_values(["last_rows_dense", "sparsity_requested"], kind="stable")
    protocol = means.last_rows_dense.map(lambda rows: f"last {rows:.0f} dense" if rows else "all sparse")
    means = means.assign(column=[f"{s:.0%}, {kind}" for s, kind in zip(means.sparsity_requested, protocol)])
    lines = {"run": "run", "length": "context", "method_name": "method"}
    cells = table_format.grid(means, lines, "column", _with_realised, noted=means)
    cells = cells.sort_values("run", key=lambda runs: runs.map(order), kind="stable")
    answered = "; ".join(
        f"{table_format.number(line.value, line.low, line.high)} at {line.length}" for line in dense.itertuples()
    )
    note = (
        f"{_of(means)}: {what} [95% interval] (realised sparsity). All sparse: the "
        "method chooses the blocks of every row. Last dense: the last block rows, which ask, read every key, "
        f"within the same budget. Dense attention answers {answered}."
    )
    return _section(title, cells, (note, *_reasons(means)))


def _times(frame: pd.DataFrame) -> Section:
    """Return times and memory: one line per method, sparsity and context, one column per stage and quantity."""
    frame = frame[frame.metric.isin(["latency", SPEEDUP, methods.MEMORY])].copy()
    unmeasured = frame.status != "measured"
    frame = frame[~(unmeasured & (frame.metric != "latency"))]
    of_metric = frame.metric.map({SPEEDUP: RATIO, methods.MEMORY: PEAK})
    frame["column"] = frame.stage.map(STAGES).where(frame.metric == "latency", of_metric)
    frame["column"] = frame.column.where(frame.status == "measured", STAGES["total"])
    frame["requested"] = frame.sparsity_requested.map("{:.0%}".format, na_action="ignore").fillna("")
    lines = {"run": "run", "length": "context", "method_name": "method", "requested": "sparsity"}
    cells = table_format.grid(frame, lines, "column", _time)
    shown = [name for name in (*STAGES.values(), RATIO, PEAK) if name in cells]
    bases = ", ".join(colors.display(base) for base in frame.base.dropna().unique())
    inputs = ", ".join(dict.fromkeys(frame.model.dropna()))
    note = (
        f"Medians of one layer's attention, on q, k and v {inputs}. Speed-up: dense time / method time, planning "
        f"included, in the same rounds [95% interval over rounds]; dense is {bases}. Below 1 the method is slower. "
        "Peak: memory of one call beyond its inputs, planning included."
    )
    notes = [note, *_reasons(frame)]
    if (frame.status[frame.run == OWN] == DISTURBED).any():
        notes.append("To time again, run the same command on a quiet machine; nothing else is measured again then.")
    return _section("Time and memory", cells[[*lines.values(), *shown]], tuple(notes))


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
    if entry.metric in ("latency", methods.MEMORY):
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
        for name, width in _widths(section.cells, console.width).items():
            shown.add_column(name, overflow="fold", width=width)
        for line in section.cells.to_numpy():
            shown.add_row(*map(str, line), style="bold" if OWN in line else None)
        console.print()
        console.print(shown)
        for note in section.notes:
            console.print(note, style="dim", markup=False, highlight=False)
    console.print()
    for source in content.sources:
        console.print(source, style="dim", markup=False, highlight=False)


def _widths(cells: pd.DataFrame, width: int) -> dict[str, int | None]:
    """Return the width of each column of a table in a terminal of `width`, in which no word is broken.

    Where even the longest words do not fit, there is none: rich then breaks words, and cuts nothing off.
    """
    texts = {str(name): [str(name), *map(str, cells[name])] for name in cells}
    given = {name: max(len(word) for text in column for word in text.split()) for name, column in texts.items()}
    wanted = {name: max(map(len, column)) for name, column in texts.items()}
    spare = width - sum(given.values()) - 3 * len(given) - 1  # without borders
    if spare < 0:
        return dict.fromkeys(given)
    for _ in range(min(spare, sum(wanted.values()) - sum(given.values()))):
        given[max(given, key=lambda name: wanted[name] / given[name])] += 1
    return dict(given)


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
