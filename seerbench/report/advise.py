"""`seerbench advise`: the method to take at a length, per machine, with its speed and its loss.

    timed cells of a machine -> speed-up over its fastest dense kernel  \
                                                                         joined by method, block size and sparsity
    strongest perplexity rows of any machine -> loss against dense      /

A method is recommended if it is the fastest whose whole loss interval is within the reader's tolerance and whose
whole speed-up interval is above 1. The loss is that at the realised sparsity of the timed cell, interpolated along
the method's own losses (rows/equal_sparsity.py); a cell beyond their range has none and is not recommended.
Oracles, random blocks and gates without training are left out, and so are the timings of `seerbench compare`.
Nothing is measured or extrapolated. advise_tables.py lists all that was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from seerbench.artefacts import aggregates, colors, frames, gate_sets, labels, style
from seerbench.errors import ConfigError, MissingRows, ResultsError
from seerbench.presets.load import load_preset
from seerbench.presets.types import TrainedGates
from seerbench.rows import requests
from seerbench.rows.gate_ref import PAPER_GATE, UNTRAINED
from seerbench.rows.manifest import MANIFEST
from seerbench.rows.schema import DISTURBED, SCALE_KINDS
from seerbench.rows.store import Run

TOLERANCE = 0.02  # nats per token by default: 2% of perplexity
WORTH_NAMING = 0.1  # A faster method is named if it loses at most this many nats per token, 10% of perplexity.
COMPARED = "compare"  # the preset in the rows of `seerbench compare`
LINES = 25  # An answer has at most this many lines.
# sweep -> (stage, its name in an answer)
TIMES = {"methods": ("total", "attention"), "ttft": ("ttft", "time to first token")}


@dataclass(frozen=True)
class Timed:
    """The timings of one sweep on one machine.

    Attributes:
        run: the run that they are from.
        sweep: a key of TIMES.
        lines: one line per method, block size and sparsity at each context: the speed-up over the fastest dense
            kernel (value, low, high, base), with the columns `name` (the method without its block size), `method`
            (in the losses), `gate_set` and `block`.
        disturbed: how many cells are left out, because other processes disturbed them.
        label: where the numbers come from.
        rank: scale and date; of several runs of a machine, the largest counts.
    """

    run: Run
    sweep: str
    lines: pd.DataFrame
    disturbed: int
    label: labels.Label
    rank: tuple[int, str]


@dataclass(frozen=True)
class Quality:
    """The losses of one run.

    Attributes:
        run: the run that they are from.
        rows: measured rows of the table `perplexity` of one model, with the columns `gate_set` and `block`.
        label: where the numbers come from.
    """

    run: Run
    rows: pd.DataFrame
    label: labels.Label

    def context(self, wanted: int) -> int:
        """Return the longest measured context up to `wanted`, or else the shortest: losses fall with the length."""
        contexts = sorted(int(context) for context in self.rows.context.unique())
        return max((context for context in contexts if context <= wanted), default=contexts[0])


def runs_in(published: Path, fresh: Path) -> list[Path]:
    """Return the folders below both that have rows, published ones first."""
    folders = [*sorted(published.glob("*")), *sorted(fresh.glob("*"))]
    return [folder for folder in folders if any(folder.glob("*/*.parquet"))]


def nearest(contexts: Iterable[int], wanted: int) -> list[int]:
    """Return [wanted] if it was measured, else the measured contexts next below and above it."""
    known = sorted({int(context) for context in contexts})
    if wanted in known:
        return [wanted]
    below = [context for context in known if context < wanted]
    above = [context for context in known if context > wanted]
    return [*below[-1:], *above[:1]]


def runs_of(gpu: str | None, folders: Iterable[Path]) -> list[Run]:
    """Return the runs of the folders. Raises ResultsError if none is from a machine called `gpu`."""
    runs = [Run(folder) for folder in folders]
    devices = sorted({device for run in runs for device in run.table("runs").device})
    if gpu is not None and not any(gpu.lower() in device.lower() for device in devices):
        raise ResultsError(f"no rows from a machine called {gpu!r}; there are rows from {', '.join(devices)}")
    return runs


def advise(context: int, gpu: str | None, folders: Sequence[Path], tolerance: float = TOLERANCE) -> list[str]:
    """Return lines of advice for a person, at most LINES of them.

    Raises ResultsError if no rows are from a machine called `gpu`.

    Args:
        context: the tokens of the prompt.
        gpu: a part of the machine's name in any case; None takes every machine.
        folders: the folders of the runs.
        tolerance: the largest loss that is accepted, in nats per token over dense attention.
    """
    runs = runs_of(gpu, folders)
    compared = [run for run in runs if set(run.table("runs").preset) == {COMPARED}]
    measured = [run for run in runs if run not in compared]
    quality = strongest_quality(measured)
    machines = machines_of(measured, gpu)
    exact_first = sorted(machines, key=lambda device: not _has(machines[device], context))
    accepted = f"a loss of up to {tolerance:g} nats per token over dense attention is accepted (--loss)"
    head = [f"Prompts of {style.size(context)} tokens; {accepted}."]
    foot = _footer(quality, compared, measured)
    room = LINES - len(head) - len(foot) - 1
    body: list[str] = []
    left_out: list[str] = []
    for device in exact_first:
        block = ["", *_machine(device, machines[device], quality, context, tolerance)]
        if len(body) + len(block) <= room:
            body += block
        else:
            left_out.append(device)
    if not machines:
        body = ["", "No run here has timings of whole methods; measure them: make figures"]
    rest = [f"Left out for space: {', '.join(left_out)}; name one with --gpu."] if left_out else []
    return [*head, *body, *foot, *rest]


def machines_of(runs: Sequence[Run], gpu: str | None) -> dict[str, dict[str, Timed]]:
    """Return device -> sweep -> its timings, those of the strongest run."""
    machines: dict[str, dict[str, Timed]] = {}
    for run in runs:
        for sweep in TIMES:
            try:
                cells, samples = frames.timings(run, sweep)
            except MissingRows:
                continue
            for device, of_device in cells.groupby("device", sort=False):
                if gpu is not None and gpu.lower() not in device.lower():
                    continue
                found = _timed(run, sweep, of_device, samples)
                known = machines.setdefault(device, {})
                if sweep not in known or known[sweep].rank < found.rank:
                    known[sweep] = found
    return machines


def _timed(run: Run, sweep: str, cells: pd.DataFrame, samples: pd.DataFrame) -> Timed:
    """Return the timings of one sweep on one machine."""
    stage, _ = TIMES[sweep]
    steps = run.table("runs")
    steps = steps[steps.run_id.isin(cells.run_id)]
    lines = aggregates.speedups(cells, samples, stage, "fastest")
    key = ["method", "context", "sparsity_requested"]
    facts = cells[[*key, "block_k", "gate", "mask"]].drop_duplicates(key, keep="last")
    lines = lines[(lines.status == "measured") & lines.sparsity_requested.notna()].merge(facts, on=key)
    lines["gate_set"] = lines.gate.map(gate_sets.set_of).fillna(PAPER_GATE).where(lines["mask"] == "gate", None)
    lines["name"] = [name.removesuffix(f"-{block}") for name, block in zip(lines.method, lines.block_k)]
    lines["method"] = [
        name.replace("+fa4", "").removesuffix(f"-{gate_set}") for name, gate_set in zip(lines.name, lines.gate_set)
    ]
    lines = lines[~aggregates.is_control(lines.method) & (lines.gate_set != UNTRAINED)]
    lines = lines.rename(columns={"block_k": "block"})
    rank = min(_scale(scale) for scale in steps.scale_kind), steps.started.max()
    disturbed = int((cells.status == DISTURBED).sum())
    return Timed(run, sweep, lines, disturbed, labels.label(run, cells, timed=True), rank)


def _scale(kind: object) -> int:
    return SCALE_KINDS.index(kind) if kind in SCALE_KINDS else -1


def strongest_quality(runs: Iterable[Run]) -> Quality | None:
    """Return the losses of the run of the strongest scale, then the longest context, then the latest, if any."""
    best: tuple[tuple[int, int, str], Run] | None = None
    for run in runs:
        rows = requests.rows(run, "perplexity")
        rows = rows[(rows.experiment == "contexts") & (rows.status == "measured")]
        if rows.empty:
            continue
        steps = run.table("runs")
        steps = steps[steps.run_id.isin(rows.run_id)]
        rank = min(_scale(scale) for scale in steps.scale_kind), int(rows.context.max()), steps.started.max()
        if best is None or best[0] < rank:
            best = rank, run
    return _quality(best[1]) if best else None


def _quality(run: Run) -> Quality:
    """Return the losses of one run, from the experiments `contexts` and `gates` of one model."""
    rows = requests.rows(run, "perplexity")
    model = rows.model[rows.experiment == "contexts"].iloc[0]
    rows = rows[rows.experiment.isin(["contexts", "gates"]) & (rows.model == model)]
    measured = rows[rows.status == "measured"].sort_values("experiment", kind="stable")
    default, blocks = _blocks(run, model)
    measured = measured.assign(
        gate_set=measured.gate.map(gate_sets.set_of),
        block=[blocks.get(gate_sets.job_of(gate), default) for gate in measured.gate],
    )
    return Quality(run, measured, labels.label(run, rows))


def _blocks(run: Run, model: str) -> tuple[int | None, dict[str | None, int]]:
    """Return (block size of a model in the run's preset, gate job -> its own), as far as the preset is known."""
    try:
        file = load_preset(run.table("runs").preset.iloc[-1]).file
    except ConfigError:
        return None, {}
    jobs = {name: job.block for name, job in file.gates.items() if isinstance(job, TrainedGates)}
    return file.of_model(model, "block"), {name: block for name, block in jobs.items() if block is not None}


def with_loss(timed: pd.DataFrame, quality: Quality | None, context: int) -> pd.DataFrame:
    """Return the timed lines at one context that have a loss, with its columns, `loss_context` and `loss_block`.

    The loss is that of the same method, gate set and block size at the realised sparsity of the timed line. Where
    the run of the losses has no gate of that block size at all, it is that of its own block size; `loss_block` says
    which. Lines beyond the range of the measured losses are left out.
    """
    columns = ["delta", "delta_low", "delta_high", "loss_context", "loss_block"]
    lines = timed[timed.context == context]
    if quality is None:
        return lines.iloc[:0].reindex(columns=[*lines.columns, *columns])
    rows = quality.rows[quality.rows.context == quality.context(context)]
    known = rows[rows.sparsity_requested.notna()]
    found = []
    for line in lines.to_dict("records"):
        same = known[known.method == line["method"]]
        if line["gate_set"] is not None:
            same = same[same.gate_set == line["gate_set"]]
        of_block = same[same.block == line["block"]]
        same = of_block if len(of_block) else same
        if line["gate_set"] is not None:  # Several gate jobs may have this set and block size.
            same = same[same.gate.isin(same.gate.head(1))]
        loss = aggregates.loss_at(same, rows, line["sparsity_realised"])
        if loss is not None:
            numbers = dict(zip(columns, (*loss, same.context.iloc[0], same.block.iloc[0])))
            found.append({**line, **numbers})
    return pd.DataFrame(found, columns=[*lines.columns, *columns])


def recommended(lines: pd.DataFrame, tolerance: float) -> tuple[pd.Series | None, pd.Series | None]:
    """Return (the fastest line within the tolerance, a faster one beyond it); None where there is none.

    Only a line whose whole speed-up interval is above 1 counts, and beyond the tolerance only one that loses at
    most WORTH_NAMING.
    """
    faster = lines[lines.low > 1].sort_values("value", ascending=False, kind="stable")
    within = faster[faster.delta_high <= tolerance]
    best = None if within.empty else within.iloc[0]
    beyond = faster[(faster.delta_high > tolerance) & (faster.delta_high <= WORTH_NAMING)]
    more = None if beyond.empty else beyond.iloc[0]
    return best, more if more is None or best is None or more.value > best.value else None


def _has(timed: dict[str, Timed], context: int) -> bool:
    return any((each.lines.context == context).any() for each in timed.values())


def _machine(
    device: str, timed: dict[str, Timed], quality: Quality | None, context: int, tolerance: float
) -> list[str]:
    """Return the advice for one machine."""
    lines = [f"{device}:"]
    for sweep, (_, meaning) in TIMES.items():
        if sweep not in timed or timed[sweep].lines.empty:
            continue
        here = timed[sweep]
        at = nearest(here.lines.context, context)
        if at != [context]:
            lengths = " and ".join(map(style.size, at))
            lines.append(f"  {meaning}: {style.size(context)} was not measured; the nearest measured: {lengths}")
        for length in at:
            best, more = recommended(with_loss(here.lines, quality, length), tolerance)
            prefix = f"  {meaning} at {style.size(length)}: "
            if best is not None:
                lines.append(prefix + _in_words(best))
            else:
                fastest = here.lines[here.lines.context == length].base.iloc[0]
                lines.append(f"{prefix}dense ({colors.display(fastest)}); no method is faster within this loss")
            if more is not None:
                lines.append(f"    with more loss: {_in_words(more)}")
    disturbed = sum(each.disturbed for each in timed.values())
    if disturbed:
        lines.append(f"  left out as disturbed: {disturbed} of the timings; measure them on an idle machine")
    return lines + list(dict.fromkeys(f"  timed: {_origin(each.run, each.label)}" for each in timed.values()))


def _origin(run: Run, label: labels.Label) -> str:
    """Return the folder, dates, commits and scales of measured numbers, without the machine."""
    folder = run.folder.resolve()
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    return "; ".join((str(shown), " to ".join(label.dates), *label.commits, *label.scales, *label.remarks))


def _in_words(line: pd.Series) -> str:
    """Return a recommendation: method, block size, sparsity, speed-up and loss, each with its interval."""
    other_block = (
        "" if line.loss_block in (line.block, None) else f", measured with blocks of {line.loss_block:.0f}"
    )
    return (
        f"{colors.display(line['name'])}, blocks of {line.block}, {line.sparsity_requested:.0%}: "
        f"{line.value:.2f}x [{line.low:.2f}, {line.high:.2f}] over {colors.display(line.base)}; "
        f"loss at {style.size(line.loss_context)} {line.delta:+.3f} "
        f"[{line.delta_low:+.3f}, {line.delta_high:+.3f}]{other_block}"
    )


def _footer(quality: Quality | None, compared: Sequence[Run], measured: Sequence[Run]) -> list[str]:
    """Return where the losses come from, and which runs were left out."""
    lines = [""]
    if quality is None:
        lines.append(
            "Loss: no run here has perplexities, so nothing can be recommended; measure them: make figures"
        )
    else:
        lines.append("Loss: nats per token over dense on the same documents; another model may lose more or less.")
        lines.append(f"  measured: {_origin(quality.run, quality.label)}")
    lines += [f"{run.folder} is not used: it has timings of `seerbench compare`." for run in compared]
    lines += [
        f"{run.folder} has no timings yet: its run is not finished, or its preset times nothing."
        for run in measured
        if requests.rows(run, "cells").empty and not (run.folder / MANIFEST).is_file()
    ]
    return [*lines, "Every measured sparsity: seerbench advise --all"]
