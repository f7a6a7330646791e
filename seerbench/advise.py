"""`seerbench advise`: what pays off at a context on a GPU, read from rows; nothing is measured or extrapolated.

Speed comes from timed cells (time to first token before whole methods before kernels alone), loss from
perplexity rows. They may come from different runs: each line of advice names the run that it is from.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from seerbench.artefacts import sources, summaries
from seerbench.results import Run

# sweep -> (stage, what its time holds), the most telling first.
SWEEPS = {
    "ttft": ("ttft", "time to first token, planning included"),
    "methods": ("total", "one layer's attention, planning included"),
    "kernel": ("attend", "the attention kernel alone, random mask, no planning"),
}


def runs_in(published: Path, fresh: Path) -> list[Path]:
    """Folders that hold rows, published first."""
    folders = [*sorted(published.glob("*")), *sorted(fresh.glob("*"))]
    return [folder for folder in folders if any(folder.glob("*/*.parquet"))]


def nearest(contexts: Iterable[int], wanted: int) -> list[int]:
    """`wanted` if it was measured, else the measured contexts on both sides of it."""
    known = sorted({int(context) for context in contexts})
    if wanted in known:
        return [wanted]
    below, above = [c for c in known if c < wanted], [c for c in known if c > wanted]
    return [*below[-1:], *above[:1]]


def verdict(line: pd.Series) -> str:
    """What the interval of a speed-up allows to say."""
    if line.low > 1:
        return "pays off"
    return "dense wins" if line.high < 1 else "undecided: the interval holds 1"


def advise(context: int, gpu: str | None, folders: Iterable[Path]) -> list[str]:
    """Lines for a person. gpu: part of a device's name, any case; None takes every machine."""
    lines, found = [], False
    for folder in folders:
        run = Run(folder)
        about = run.table("runs")
        names = about[about.device.str.contains(gpu or "", case=False, regex=False)]
        if names.empty:
            continue
        found = True
        cells, samples = run.table("cells"), run.table("samples")
        cells = cells[cells.run_id.isin(names.run_id)]
        perplexities = run.table("perplexity")
        perplexities = perplexities[perplexities.run_id.isin(names.run_id)]
        lines += ["", f"{folder}"]
        lines += _speed(run, cells, samples, context)
        lines += _loss(run, perplexities, context)
    if not found:
        lines.append(f"no rows from a machine called {gpu!r}; measure there, or drop --gpu to see what there is")
    return lines


def _at(frame: pd.DataFrame, context: int) -> tuple[list[int], str]:
    contexts = nearest(frame.context, context)
    note = "" if contexts == [context] else f"; {context} was not measured, the nearest are {contexts}"
    return contexts, note


def _speed(run: Run, cells: pd.DataFrame, samples: pd.DataFrame, context: int) -> list[str]:
    for sweep, (stage, holds) in SWEEPS.items():
        here = cells[cells.sweep == sweep]
        if here.empty:
            continue
        contexts, note = _at(here, context)
        here = here[here.context.isin(contexts)]
        lines = [f"  speed: {holds}{note}", f"    {sources.label(run, here, timed=True)}"]
        faster = summaries.speedups(here, samples[samples.run_id.isin(here.run_id)], stage)
        faster = faster[faster.sparsity_requested.notna()]
        for (at, method), group in faster.groupby(["context", "method"], sort=False):
            lines.append(f"    {at}, {method}")
            for line in group.sort_values("sparsity_requested").itertuples():
                if line.status != "measured":
                    lines.append(f"      {line.sparsity_requested:.0%}: {line.status} ({line.reason})")
                    continue
                lines.append(
                    f"      {line.sparsity_requested:.0%} asked, {line.sparsity_realised:.0%} skipped: "
                    f"{line.value:.2f}x {line.base} [{line.low:.2f}, {line.high:.2f}], {verdict(line)}"
                )
        return lines
    return ["  speed: no timed rows in this run"]


def _loss(run: Run, rows: pd.DataFrame, context: int) -> list[str]:
    rows = rows[rows.experiment == "contexts"]
    if rows.empty:
        return ["  loss: no perplexity rows in this run; the speed above says nothing about quality"]
    contexts, note = _at(rows, context)
    rows = rows[rows.context.isin(contexts)]
    lines = [f"  loss: nats a token over dense, same documents{note}", f"    {sources.label(run, rows)}"]
    found = summaries.perplexities(rows)
    found = found[(found.method != "dense") & found.delta.notna()]
    for (at, method, gate), group in found.groupby(["context", "method", "gate"], sort=False, dropna=False):
        named = f"{method} ({gate})" if isinstance(gate, str) else method
        parts = [
            f"{line.sparsity_requested:.0%}: {line.delta:+.3f} [{line.delta_low:+.3f}, {line.delta_high:+.3f}]"
            for line in group.sort_values("sparsity_requested").itertuples()
        ]
        lines.append(f"    {at}, {named}: {'; '.join(parts)}")
    return lines
