"""The leaderboard: what every method loses and gains, from the rows of runs, ranked where numbers are comparable.

A board is one model at one context on the same windows: the same weights, texts and documents. Runs that measured
the same windows share a board, such as a published run and an evaluation of your own (beside.py). On a board,
methods are ranked by loss at equal requested sparsity. Everything else in a line is measured in the same model. The
numbers are those that the artefacts collect; no statistic is computed here.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from types import ModuleType
from typing import Any, cast

import pandas as pd
from tqdm import tqdm

from seerbench.artefacts import (
    aggregates,
    colors,
    frames,
    labels,
    methods,
    ruler,
    style,
    table2,
    table4,
    table_format,
)
from seerbench.artefacts.gate_sets import set_of
from seerbench.artefacts.paper_numbers import paper_values
from seerbench.compare.load import NEEDS_A_MODEL
from seerbench.errors import ConfigError, MissingRows
from seerbench.evaluate import page
from seerbench.evaluate.beside import FOLDER, SAME_LOSS
from seerbench.evaluate.protocol import LOOKUPS, LOSSES, RULER, RULER_LAST, SPARSITIES, TIMINGS
from seerbench.methods.block_sparse_kernels import DENSE
from seerbench.methods.cards import read_cards
from seerbench.methods.registry import add, catalogue
from seerbench.presets.file import PresetFile
from seerbench.presets.load import load_preset
from seerbench.presets.types import flat
from seerbench.report.claims_page import with_part
from seerbench.rows import requests
from seerbench.rows.gate_ref import PAPER_GATE
from seerbench.rows.schema import CAPTURED, RANDOM, SCALE_KINDS
from seerbench.rows.store import Run

TITLE = "SeerBench leaderboard"
LEADERS = 3  # the places that the README shows, between these two comments
BETWEEN = ("<!-- leaders: seerbench check leaderboard --write -->", "<!-- end of leaders -->")
LOOK_UPS, TIMES = ("tasks", LOOKUPS), ("latency", TIMINGS)
# quantity -> (its heading, the section of a preset whose step measures it)
QUANTITIES = {
    "loss": ("loss, nats", ("perplexity", LOSSES)),
    "lookups": ("look-ups, %", LOOK_UPS),
    "lookups_last": ("look-ups, last rows dense, %", LOOK_UPS),
    "ruler": ("RULER, %", ("tasks", RULER)),
    "ruler_last": ("RULER, last rows dense, %", ("tasks", RULER_LAST)),
    "plan": ("plan, ms", TIMES),
    "attend": ("attend, ms", TIMES),
    "total": ("both, ms", TIMES),
    "speedup": ("speed-up", TIMES),
    "ttft": ("first token, s", ("latency", "ttft")),
}
LAST = ("lookups_last", "ruler_last")
# The model of timings on random inputs, and what the name of one with random weights begins with.
INPUTS, WEIGHTS = "random inputs", "random weights"
# score -> the same under the other protocol
PROTOCOLS = {"lookups": "lookups_last", "lookups_last": "lookups", "ruler": "ruler_last", "ruler_last": "ruler"}
SCORES = tuple(PROTOCOLS)
# The sections that `seerbench evaluate` follows; it measures both protocols of RULER.
EVALUATED = {("perplexity", LOSSES), LOOK_UPS, ("tasks", RULER), ("tasks", RULER_LAST), TIMES}
OF_METHOD = ["method", "gate", "sparsity_requested"]  # what one line of a board is about, together with its run
NUMBERS = [*aggregates.NUMBERS, "status", "reason", "label"]
COLUMNS = ["model", "corpus", "context", *OF_METHOD, "sparsity_realised", "quantity", *NUMBERS]


@dataclass(eq=False)
class Board:
    """The lines of one model at one context.

    Attributes:
        model: the model; for timings on random inputs or weights, what these are.
        corpus: the text of the losses; empty without losses.
        context: in tokens.
        rank: the scale of the runs and the context; the boards with the largest come first.
        dense: losses of dense attention by document, which tell whether another run has the same windows.
        origin: weights and texts, which another run must have too.
        numbers: one line per run, method, sparsity and quantity.
        presets: run -> its preset, for commands.
    """

    model: str
    corpus: str
    context: int
    rank: tuple[int, int]
    dense: pd.Series
    origin: frozenset[tuple[Any, ...]]
    numbers: pd.DataFrame
    presets: dict[str, str]

    @property
    def title(self) -> str:
        """Return the place of the numbers in words."""
        return f"{self.model}{f' on {self.corpus}' if self.corpus else ''} at {style.size(self.context)}"

    def is_as(self, other: Board) -> bool:
        """Return whether another board is of the same windows."""
        if (self.model, self.corpus, self.context, self.origin) != (
            other.model,
            other.corpus,
            other.context,
            other.origin,
        ):
            return False
        same = len(self.dense) > 0 and set(self.dense.index) == set(other.dense.index)
        return same and bool(((self.dense - other.dense).abs() < SAME_LOSS).all())


@dataclass(frozen=True)
class Standing:
    """One table of a board: the methods at one requested sparsity.

    Attributes:
        title: which board and which sparsity.
        sparsity: the requested sparsity; NaN for methods at their own settings.
        cells: strings, one line per method, in the order of their place.
        notes: why numbers are missing, and the commands that make them.
        own: for each line, whether it is of a run that the reader named.
    """

    title: str
    sparsity: float
    cells: pd.DataFrame
    notes: tuple[str, ...]
    own: tuple[bool, ...] = field(default=())


def boards(runs: Iterable[Run], losses_only: bool = False) -> list[Board]:
    """Return the boards of the runs, the strongest first: by scale, then the longest context with losses.

    The folder `beside` of an evaluation is read with it. losses_only: whether to leave out all other quantities,
    which do not change the places by loss.
    """
    found: list[Board] = []
    for run in tqdm(list(runs), desc="reading runs", unit="run", leave=False, disable=None):
        _add_cards(run)
        parts = [run, *([Run(run.folder / FOLDER)] if (run.folder / FOLDER).is_dir() else [])]
        for part in parts:
            name = f"{run.folder.name}/{FOLDER}" if part is not run else run.folder.name
            for board in _boards_of(part, name, losses_only):
                same = next((known for known in found if known.is_as(board)), None)
                if same is None:
                    found.append(board)
                else:
                    both = pd.concat([same.numbers, board.numbers], ignore_index=True)
                    same.numbers = both.drop_duplicates([*OF_METHOD, "quantity", *NUMBERS])  # copies of one run
                    same.presets |= board.presets
    return sorted(found, key=lambda board: (len(board.dense) > 0, board.rank), reverse=True)


def _add_cards(run: Run) -> None:
    """Make the methods known whose files `seerbench evaluate` copied beside the rows: their titles and fidelity."""
    for file in sorted(run.folder.glob("*.py")):
        for card in read_cards(file, file.stem):
            if card.name not in catalogue():
                add(card)


def _boards_of(run: Run, name: str, losses_only: bool) -> Iterator[Board]:
    """Yield the boards of one run: at each context with losses, or with times alone.

    Look-ups and RULER that were not measured at a context with losses are those of the longest context below it.
    """
    numbers = numbers_of(run, losses_only)
    if numbers.empty:
        return
    rows, runs = requests.rows(run, "perplexity"), run.table("runs")
    rows = rows[(rows.experiment == LOSSES) & (rows.method == "dense") & (rows.status == "measured")]
    kinds = [SCALE_KINDS.index(kind) for kind in runs.scale_kind if kind in SCALE_KINDS]
    scored = numbers.quantity.isin(SCORES)
    for (model, context), lines in numbers.groupby(["model", "context"]):
        dense = rows[(rows.model == model) & (rows.context == context)].drop_duplicates("document")
        if len(dense):
            below = numbers[scored & (numbers.model == model) & (numbers.context < context)]
            below = below.sort_values("context", ascending=False, kind="stable")
            lines = pd.concat([lines, below[~below.quantity.isin(lines.quantity)]])
            lines = lines.drop_duplicates([*OF_METHOD, "quantity"])
        elif lines.quantity.isin(SCORES).all():
            continue
        steps = runs[runs.run_id.isin(dense.run_id)]
        yield Board(
            model=model,
            corpus=", ".join(dense.corpus.unique()),
            context=int(context),
            rank=(max(kinds, default=-1), int(context)),
            dense=dense.set_index("document").nll,
            origin=frozenset(zip(steps.corpus_sha256, steps.weights)),
            numbers=lines.assign(run=name),
            presets={name: runs.preset.iloc[-1]},
        )


def numbers_of(run: Run, losses_only: bool = False) -> pd.DataFrame:
    """Return what a run has of QUANTITIES: one line per method, gate, sparsity, model, context and quantity."""
    parts = (
        [_losses(run)]
        if losses_only
        else [
            _losses(run),
            _part(run, table2, lambda frame: _protocol(frame, "lookups").where(_is_mean(frame))),
            _part(run, ruler, lambda frame: _protocol(frame, "ruler").where(frame.task == ruler.MEAN)),
            _part(run, methods, _time),
            _part(run, table4, lambda frame: frame.metric.map({"seconds": "ttft"})),
        ]
    )
    every = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    if every.empty:
        return every
    every = _with_gates(every)
    wanted = every.sparsity_requested.isna() | every.sparsity_requested.isin(SPARSITIES)
    return every[wanted & every.context.notna()].drop_duplicates(["model", "context", *OF_METHOD, "quantity"])


def _with_gates(every: pd.DataFrame) -> pd.DataFrame:
    """Return the lines with the gates of timings, which name a gate set in the method and no gate.

    A timing of `seer` is of the paper's gate; one of `seer-v2` is of the set v2. The gate is the first with losses
    of that set, if there is one.
    """
    seer = every[(every.quantity == "loss") & (every.method == "seer")]
    gates = {set_of(gate): gate for gate in reversed(seer.gate.tolist())}
    every = every.copy()
    for place, method, gate in zip(every.index, every.method, every.gate, strict=True):
        base, _, name = method.partition("-")
        if base == "seer" and not gate and (name or PAPER_GATE) in gates:
            every.loc[place, ["method", "gate"]] = base, gates[name or PAPER_GATE]
    return every


def _losses(run: Run) -> pd.DataFrame:
    """Return the losses over dense attention of every method, those at its own setting included."""
    try:
        rows = frames.experiment(run, "perplexity", LOSSES, "perplexity")
    except MissingRows:
        return pd.DataFrame(columns=COLUMNS)
    sparse = rows[~rows.method.isin(DENSE) & rows.threshold.isna()]
    found = aggregates.perplexities(sparse, rows[rows.method == "dense"])
    found = found[found.delta.notna() | (found.status != "measured")].drop(columns=aggregates.NUMBERS)
    found = found.rename(columns=dict(zip(aggregates.DELTAS, aggregates.NUMBERS)))
    found["gate"] = found.gate.astype(object).where(found.gate.notna(), "")
    return found.assign(quantity="loss", label=str(labels.label(run, rows))).reindex(columns=COLUMNS)


def _part(run: Run, artefact: ModuleType, quantity: Callable[[pd.DataFrame], pd.Series]) -> pd.DataFrame:
    """Return the numbers of an artefact with their quantity; lines without a quantity are left out."""
    try:
        frame = artefact.collect(run, paper_values().iloc[:0])
    except MissingRows:
        return pd.DataFrame(columns=COLUMNS)
    frame = frame[frame.status != "missing"]
    if "threshold" in frame:
        frame = frame[frame.threshold.isna()]
    frame = frame.assign(quantity=quantity(frame)).reindex(columns=COLUMNS)
    frame["gate"] = frame.gate.astype(object).where(frame.gate.notna(), "")
    frame["model"] = frame.model.str.removeprefix(f"{CAPTURED}:").str.replace(r", beyond .*", "", regex=True)
    frame["model"] = frame.model.str.replace(rf"^{RANDOM}(:.*)?$", INPUTS, regex=True)
    return frame[frame.quantity.notna()]


def _is_mean(frame: pd.DataFrame) -> pd.Series:
    return (frame.task == table2.MEAN) & frame.reach.isna()


def _protocol(frame: pd.DataFrame, name: str) -> pd.Series:
    return frame.last_rows_dense.gt(0).map({True: f"{name}_last", False: name})


def _time(frame: pd.DataFrame) -> pd.Series:
    """Return the quantity of each line of the artefact `methods`; what was not timed is told under the total."""
    stage = frame.stage.where(frame.status == "measured", "total")
    stage = stage.where(frame.series != "dense", "total")  # a dense method plans nothing
    return stage.where(frame.metric == "latency", frame.metric.map({"speedup over reference": "speedup"}))


def standings(board: Board, own: Sequence[str] = ()) -> list[Standing]:
    """Return the tables of a board: one per requested sparsity, and one of methods that choose for themselves.

    own: names of the runs whose lines are the reader's own.
    """
    lines = board.numbers
    dense = lines[lines.method.isin(DENSE)]
    sparse = lines[~lines.method.isin(DENSE)]
    tables = []
    for sparsity, part in sparse.groupby("sparsity_requested", dropna=False):
        asked = f"{sparsity:.0%} skipped" if pd.notna(sparsity) else "at their own settings"
        shown = pd.concat([dense, part])
        tables.append(_standing(board, f"{board.title}, {asked}", cast(float, sparsity), shown, own))
    return tables


def _standing(board: Board, title: str, sparsity: float, lines: pd.DataFrame, own: Sequence[str]) -> Standing:
    """Return one table; methods are ranked if all of them were asked to skip the same share."""
    ranked = pd.notna(sparsity)
    notes: list[str] = []
    records = []
    here = [name for name in QUANTITIES if name in set(lines.quantity)]
    for (run, method, gate), group in lines.groupby(["run", "method", "gate"], sort=False):
        numbers = group.drop_duplicates("quantity").set_index("quantity")
        # Without any loss, as on random inputs, methods are ranked by their speed-up.
        value = numbers.value.get("loss" if "loss" in here else "speedup", float("nan"))
        dense, control = method in DENSE, colors.base_of(method) in aggregates.CONTROLS
        base = colors.base_of(method)  # "seer-128" is a variant of seer by its block
        card = catalogue().get(base) or catalogue().get(base.rpartition("-")[0])
        record = {
            "run": run,
            "method": colors.display(method, gate),
            "fidelity": card.fidelity if card else "",
            "order": float("-inf") if dense else value if "loss" in here else -value,
            "competes": ranked and pd.notna(value) and not dense and not control,
        }
        arm = Wanted(method, gate, group.sparsity_requested.iloc[0], run, board)
        records.append(record | {"arm": arm, "numbers": numbers})
    table = pd.DataFrame(records).sort_values("order", kind="stable", na_position="last")
    table["place"] = table.competes.cumsum().where(table.competes, "")
    for name in here:
        table[name] = [_cell(name, numbers, arm, notes) for numbers, arm in zip(table.numbers, table.arm)]
    headings = {name: QUANTITIES[name][0] for name in here}
    several = ["run"] if table.run.nunique() > 1 else []
    cells = table[["place", "method", *several, *here, "fidelity"]].rename(columns=headings).astype(str)
    sources = [f"{run}: {label}." for run, label in zip(lines.run, lines.label, strict=True)]
    notes += _absent(here, board, lines.run.iloc[0])
    return Standing(title, sparsity, cells, (*notes, *dict.fromkeys(sources)), tuple(table.run.isin(own)))


def _absent(here: Sequence[str], board: Board, run: str) -> list[str]:
    """Return which quantities a whole table lacks, by the command that measures them, if the preset has one."""
    by_command: dict[str, list[str]] = {}
    for name in QUANTITIES:
        if name not in here:
            section = QUANTITIES[name][1]
            measured = _section_of(section, board, run) is not None
            command = f"to measure: {_step(section, board, run)}" if measured else "the preset has none"
            by_command.setdefault(command, []).append(QUANTITIES[name][0].rsplit(",", 1)[0])
    return [f"No numbers for {'; '.join(names)}: {command}." for command, names in by_command.items()]


@dataclass(frozen=True)
class Wanted:
    """A method of a run at one requested sparsity (NaN: at its own setting), for which a number may be missing.

    gate: its gate, plan file or configuration, or "".
    """

    method: str
    gate: str
    sparsity: float
    run: str
    board: Board


def _cell(name: str, numbers: pd.DataFrame, arm: Wanted, notes: list[str]) -> str:
    """Return a number with its interval, or why there is none, with the number of its note."""
    if name in numbers.index:
        entry = numbers.loc[name]
        if entry.status == "measured" and pd.notna(entry.value):
            at = "" if entry.context == arm.board.context else f" at {style.size(entry.context)}"
            return _number(name, entry) + at
        return f"{entry.status.replace('_', ' ')} {_noted(notes, f'{entry.reason}.')}"
    if arm.method in DENSE and name in ("loss", *LAST, "plan", "attend", "speedup"):
        return ""
    if pd.isna(arm.sparsity) and name in SCORES and PROTOCOLS[name] in numbers.index:
        return ""  # at its own setting a method may keep dense rows by itself, so it has one protocol
    return f"missing {_noted(notes, f'to measure: {_command(name, arm)}.')}"


def _command(name: str, arm: Wanted) -> str:
    """Return the command that measures a quantity of a method: the preset's, if it has the arm, or `evaluate`."""
    section, preset = QUANTITIES[name][1], arm.board.presets[arm.run]
    step = _step(section, arm.board, arm.run)
    if _section_of(section, arm.board, arm.run) is None:
        return f"{step}, once the preset has {_key(section)} in this model"
    if _has_arm(name, arm):
        return step
    known = catalogue().get(arm.method)
    takes_request = known is not None and known.takes("sparsity") and arm.method not in NEEDS_A_MODEL
    if section in EVALUATED and takes_request and pd.notna(arm.sparsity):
        return f"seerbench evaluate {arm.method} --preset {preset} --sparsities {arm.sparsity:g}"
    return f"{step}, once the preset has an arm for it in {_key(section)}"


def _key(section: tuple[str, str]) -> str:
    """Return where a section is in the file of a preset."""
    kind, name = section
    return f"latency/sweeps/{name}" if kind == "latency" else f"{kind}/{name}"


def _step(section: tuple[str, str], board: Board, run: str) -> str:
    """Return the command of the step that measures a section of the preset of a run."""
    kind, name = section
    at = f" {board.context}" if kind == "latency" else ""
    return f"seerbench {kind} {board.presets[run]} {name}{at}"


@functools.cache
def _preset(name: str) -> PresetFile | None:
    """Return the content of a preset of config/; None for another."""
    try:
        return load_preset(name).file
    except ConfigError:
        return None


def _section_of(section: tuple[str, str], board: Board, run: str) -> Any:
    """Return a section of the preset of a run, if the preset is known and has it in the model of the board."""
    kind, name = section
    file = _preset(board.presets[run])
    if file is None:
        return None
    entries: Mapping[str, Any] = file.sweeps() if kind == "latency" else getattr(file, kind)
    found = entries.get(name)
    model = getattr(found, "model", None) or INPUTS
    return found if model == board.model.removeprefix(f"{WEIGHTS}:") else None


def _has_arm(name: str, arm: Wanted) -> bool:
    """Return whether the preset of a run measures a quantity for a method, at the context of the board.

    Scores may be of a shorter context (`_boards_of`).
    """
    found = _section_of(QUANTITIES[name][1], arm.board, arm.run)
    at = arm.board.context
    if found is None or not any(context == at or (context < at and name in SCORES) for context in found.contexts):
        return False
    return any(
        each.arm.method == arm.method
        and (each.gate is None or str(each.gate) == arm.gate)
        and (each.sparsity == arm.sparsity or (each.sparsity is None and pd.isna(arm.sparsity)))
        and bool(each.arm.last_rows_dense) == (name in LAST)
        for each in flat(found.arms)
    )


def _number(name: str, entry: pd.Series) -> str:
    if name in ("plan", "attend", "total", "ttft"):
        return f"{entry.value:.3g} [{entry.low:.3g}, {entry.high:.3g}]"
    if name == "speedup":
        return f"{entry.value:.3g}x [{entry.low:.3g}, {entry.high:.3g}]"
    realised = table_format.in_brackets(entry.sparsity_realised) if name == "loss" else ""
    shown = realised if pd.isna(entry.sparsity_requested) else ""
    return table_format.number(entry.value, entry.low, entry.high) + shown


def _noted(notes: list[str], reason: str) -> str:
    """Return the reference to a note, which is added unless it is there."""
    known = [note.partition("] ")[2] for note in notes]
    if reason not in known:
        notes.append(f"[{len(notes) + 1}] {reason}")
        return f"[{len(notes)}]"
    return f"[{known.index(reason) + 1}]"


NOTE = (
    "Ranked by loss over dense attention, at the same requested sparsity, in the same model, on the same windows; "
    "by speed-up where there are no losses. Oracles and random blocks do not compete. Loss, look-ups and RULER: "
    "[95% interval]; look-ups and RULER are means over tasks, with a sparse prompt and an answer decoded with "
    "dense attention. Times are medians [quartiles] of one layer; the speed-up is over dense attention in the same "
    "rounds, planning included [95% interval]. In round brackets: the realised sparsity, of methods at their own "
    "settings. A missing number has the command that measures it."
)


def as_frame(found: Sequence[Board]) -> pd.DataFrame:
    """Return the numbers of all boards in one frame, for a CSV file."""
    parts = [board.numbers.assign(board=board.title, corpus=board.corpus) for board in found]
    return pd.concat(parts, ignore_index=True)[["board", "run", *COLUMNS]]


def as_markdown(found: Sequence[Board], own: Sequence[str] = ()) -> str:
    """Return the first board of each model in Markdown, at its longest context."""
    first = {board.title.rsplit(" at ", 1)[0]: board for board in reversed(found)}
    tables = [table for board in found if board in first.values() for table in standings(board, own)]
    texts = [table_format.markdown(table.title, table.cells, table.notes) for table in tables]
    return f"# {TITLE}\n\n{NOTE} Other contexts are in the page and in the CSV file.\n\n" + "\n".join(texts)


def leaders(found: Sequence[Board]) -> str:
    """Return the best methods of the first board in Markdown: a column per requested sparsity, a line per place."""
    loss = QUANTITIES["loss"][0]
    columns = {}
    for table in standings(found[0]):
        if pd.notna(table.sparsity):
            placed = table.cells.loc[table.cells.place != "", ["method", loss]].head(LEADERS)
            columns[f"{table.sparsity:.0%} skipped"] = [f"{method}: {lost}" for method, lost in placed.to_numpy()]
    lines = pd.DataFrame.from_dict(columns, orient="index").T.fillna("")
    lines.insert(0, "place", [str(number + 1) for number in range(len(lines))])
    intro = textwrap.fill(
        f"**The leaders by loss**, {found[0].title}, by requested sparsity: nats per token over dense attention, "
        "every row sparse [95% interval]. Neighbours whose intervals overlap may change places on other texts.",
        width=116,
    )
    return f"{intro}\n\n{lines.to_markdown(index=False, disable_numparse=True)}\n"


def with_leaders(readme: str, found: Sequence[Board]) -> str:
    """Return the README with the best methods. Raises ResultsError if it has no place for them."""
    return with_part(readme, BETWEEN, f"\n{leaders(found)}", "the leaders")


def as_page(found: Sequence[Board], own: Sequence[str] = ()) -> str:
    """Return all boards as one page that needs no network, whose tables sort; the first board is open."""
    links, sections = [], []
    for number, board in enumerate(found):
        tables = "".join(
            page.section(table.title, table.cells, table.notes, table.own) for table in standings(board, own)
        )
        mine = " (yours)" if set(own) & set(board.numbers.run) else ""
        links.append(f'<a href="#board-{number}">{escape(board.title)}{mine}</a>')
        opened = " open" if number == 0 or mine else ""
        sections.append(
            f"<details{opened}><summary>{escape(board.title)}{mine}</summary>"
            f'<div id="board-{number}">{tables}</div></details>'
        )
    nav = f'<nav aria-label="Boards">{"".join(links)}</nav>'
    return page.page(TITLE, f"<p>{escape(NOTE)}</p>{nav}{''.join(sections)}")
