"""`seerbench advise --all`: every measured sparsity at a context on a machine. Nothing is measured or extrapolated.

Speed comes from timed cells: time to first token if a run has it, else whole methods, else kernels alone. Loss
comes from perplexity rows. The two may come from different runs; each block of advice names its run.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from seerbench.artefacts import aggregates, frames, labels
from seerbench.errors import MissingRows
from seerbench.report.advise import COMPARED, nearest, runs_of
from seerbench.rows import requests
from seerbench.rows.schema import REFUSED
from seerbench.rows.store import Run

# sweep -> (stage, what its time includes), the most informative first.
SWEEPS = {
    "ttft": ("ttft", "time to first token, planning included"),
    "methods": ("total", "one layer's attention, planning included"),
    "kernel": ("attend", "the attention kernel alone, random mask, no planning"),
}
KEY = ["context", "method", "sparsity_requested"]


def verdict(line: pd.Series) -> str:
    """Return what the interval (low, high) of a speed-up allows to say."""
    if line.low > 1:
        return "pays off"
    return "dense wins" if line.high < 1 else "undecided: the interval contains 1"


def tables(context: int, gpu: str | None, folders: Iterable[Path]) -> list[str]:
    """Return all that was measured as lines of text.

    gpu: a part of the device's name in any case; None takes every machine. Loss depends on the model and not on the
    machine, so if the runs of that machine have no loss, that of other runs follows. Raises ResultsError if no
    rows are from a machine called `gpu`.
    """
    lines, losses_elsewhere, has_loss = [], [], False
    for run in runs_of(gpu, folders):
        steps = run.table("runs")
        steps = steps[steps.device.str.contains(gpu or "", case=False, regex=False)]
        perplexities = requests.rows(run, "perplexity")
        if steps.empty:
            losses_elsewhere += _loss(run, perplexities, context)
            continue
        loss = _loss(run, perplexities[perplexities.run_id.isin(steps.run_id)], context)
        has_loss |= bool(loss)
        compared = " (timings of `seerbench compare`)" if set(steps.preset) == {COMPARED} else ""
        lines += ["", f"{run.folder}{compared}"]
        lines += _speed(run, steps.run_id, context)
        lines += loss or ["  loss: no perplexity rows in this run; the speed above says nothing about quality"]
    if not has_loss and losses_elsewhere:
        lines += ["", "loss was measured on other machines, perhaps of other models than yours:", *losses_elsewhere]
    return lines


def _contexts(rows: pd.DataFrame, context: int) -> tuple[list[int], str]:
    """Return the contexts to show, and a note if they are not the one that was requested."""
    contexts = nearest(rows.context, context)
    note = "" if contexts == [context] else f"; {context} was not measured, the nearest are {contexts}"
    return contexts, note


def _speed(run: Run, executions: pd.Series, context: int) -> list[str]:
    """Return the lines on speed of these executions, from the first of SWEEPS that they timed."""
    for sweep, (stage, meaning) in SWEEPS.items():
        try:
            rows, samples = frames.timings(run, sweep)
        except MissingRows:
            continue
        rows = rows[rows.run_id.isin(executions)]
        if rows.empty:
            continue
        contexts, note = _contexts(rows, context)
        rows = rows[rows.context.isin(contexts)]
        timed = samples[samples.run_id.isin(rows.run_id)]
        lines = [f"  speed: {meaning}{note}", f"    {labels.label(run, rows, timed=True)}"]
        faster = aggregates.speedups(rows, timed, stage, "fastest")
        over_reference = aggregates.speedups(rows, timed, stage).set_index(KEY)  # The paper's FlashAttention-2.
        faster = faster[faster.sparsity_requested.notna()]
        kernel = rows.drop_duplicates("method").set_index("method").implementation
        for (at, method), group in faster.groupby(["context", "method"], sort=False):
            group = group.sort_values("sparsity_requested")
            lines.append(f"    {at}, {method}: {in_short(group)}")
            for line in group.itertuples():
                if line.status != "measured":
                    lines.append(f"      {line.sparsity_requested:.0%}: {line.status} ({line.reason})")
                    continue
                reference = over_reference.loc[tuple(getattr(line, name) for name in KEY)]
                base = reference.base
                also = "" if base == line.base else f"; {reference.value:.2f}x {base} ({kernel[base]})"
                lines.append(
                    f"      {line.sparsity_requested:.0%} requested, {line.sparsity_realised:.0%} skipped: "
                    f"{line.value:.2f}x {line.base} [{line.low:.2f}, {line.high:.2f}]{also}, {verdict(line)}"
                )
        return lines
    return ["  speed: no timed rows in this run"]


def in_short(group: pd.DataFrame) -> str:
    """Return where one method at one context pays off over the fastest dense kernel, and where dense wins."""
    measured = group[group.status == "measured"]
    if measured.empty:
        return "not measured"
    pays, loses = measured[measured.low > 1], measured[measured.high < 1]
    parts = [f"pays off from {pays.sparsity_requested.min():.0%}" if len(pays) else "never seen to pay off"]
    if len(loses):
        parts.append(f"dense wins up to {loses.sparsity_requested.max():.0%}")
    return ", ".join(parts)


def _loss(run: Run, rows: pd.DataFrame, context: int) -> list[str]:
    """Return the lines on loss, from the experiment `contexts`; none if the rows do not have it."""
    rows = rows[rows.experiment == "contexts"]
    if rows.empty:
        return []
    contexts, note = _contexts(rows, context)
    rows = rows[rows.context.isin(contexts)]
    lines = [f"  loss: nats per token over dense, same documents{note}", f"    {labels.label(run, rows)}"]
    cells = aggregates.perplexities(rows)
    cells = cells[(cells.method != "dense") & (cells.delta.notna() | (cells.status == REFUSED))]
    for (at, method, gate), group in cells.groupby(["context", "method", "gate"], sort=False, dropna=False):
        name = f"{method} ({gate})" if isinstance(gate, str) else method
        lines.append(f"    {at}, {name}")
        for line in group.sort_values("sparsity_requested").itertuples():
            interval = f"[{line.delta_low:+.3f}, {line.delta_high:+.3f}]"
            own = pd.isna(line.sparsity_requested)
            sparsity = f"own, {line.sparsity_realised:.0%}" if own else f"{line.sparsity_requested:.0%}"
            number = f"{line.status} ({line.reason})" if line.status == REFUSED else f"{line.delta:+.3f} {interval}"
            lines.append(f"      {sparsity}: {number}")
    return lines
