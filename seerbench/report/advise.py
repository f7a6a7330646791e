"""`seerbench advise`: what pays off at a context on a GPU, read from rows; nothing is measured or extrapolated.

Speed comes from timed cells (time to first token before whole methods before kernels alone), loss from
perplexity rows. They may come from different runs: each line of advice names the run that it is from.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from seerbench.artefacts import aggregates, frames
from seerbench.rows.store import Run

# sweep -> (stage, what its time holds), the most telling first.
SWEEPS = {
    "ttft": ("ttft", "time to first token, planning included"),
    "methods": ("total", "one layer's attention, planning included"),
    "kernel": ("attend", "the attention kernel alone, random mask, no planning"),
}
KEY = ["context", "method", "sparsity_requested"]


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
    """Lines for a person. gpu: part of a device's name, any case; None takes every machine.

    Loss depends on the model, not on the machine: where the machine's own runs hold none, that of others follows.
    """
    lines, others, found, lossy = [], [], False, False
    for folder in folders:
        run = Run(folder)
        about = run.table("runs")
        names = about[about.device.str.contains(gpu or "", case=False, regex=False)]
        perplexities = run.table("perplexity")
        if names.empty:
            others += _loss(run, perplexities, context)
            continue
        found = True
        cells, samples = run.table("cells"), run.table("samples")
        cells = cells[cells.run_id.isin(names.run_id)]
        loss = _loss(run, perplexities[perplexities.run_id.isin(names.run_id)], context)
        lossy |= bool(loss)
        lines += ["", f"{folder}"]
        lines += _speed(run, cells, samples, context)
        lines += loss or ["  loss: no perplexity rows in this run; the speed above says nothing about quality"]
    if not found:
        return [f"no rows from a machine called {gpu!r}; measure there, or drop --gpu to see what there is"]
    if not lossy and others:
        lines += ["", "loss was measured on other machines, of other models than yours perhaps:", *others]
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
        timed = samples[samples.run_id.isin(here.run_id)]
        lines = [f"  speed: {holds}{note}", f"    {frames.label(run, here, timed=True)}"]
        faster = aggregates.speedups(here, timed, stage, "fastest")
        paper = aggregates.speedups(here, timed, stage).set_index(KEY)  # over FlashAttention-2, as in the paper
        faster = faster[faster.sparsity_requested.notna()]
        kernel = here.drop_duplicates("method").set_index("method").implementation
        for (at, method), group in faster.groupby(["context", "method"], sort=False):
            group = group.sort_values("sparsity_requested")
            lines.append(f"    {at}, {method}: {in_short(group)}")
            for line in group.itertuples():
                if line.status != "measured":
                    lines.append(f"      {line.sparsity_requested:.0%}: {line.status} ({line.reason})")
                    continue
                also = paper.loc[tuple(getattr(line, name) for name in KEY)]
                other = "" if also.base == line.base else f"; {also.value:.2f}x {also.base} ({kernel[also.base]})"
                lines.append(
                    f"      {line.sparsity_requested:.0%} asked, {line.sparsity_realised:.0%} skipped: "
                    f"{line.value:.2f}x {line.base} [{line.low:.2f}, {line.high:.2f}]{other}, {verdict(line)}"
                )
        return lines
    return ["  speed: no timed rows in this run"]


def in_short(group: pd.DataFrame) -> str:
    """One method at one context over the fastest dense kernel: where it pays off, and where dense wins."""
    measured = group[group.status == "measured"]
    if measured.empty:
        return "not measured"
    pays, loses = measured[measured.low > 1], measured[measured.high < 1]
    parts = [f"pays off from {pays.sparsity_requested.min():.0%}" if len(pays) else "never seen to pay off"]
    if len(loses):
        parts.append(f"dense wins up to {loses.sparsity_requested.max():.0%}")
    return ", ".join(parts)


def _loss(run: Run, rows: pd.DataFrame, context: int) -> list[str]:
    rows = rows[rows.experiment == "contexts"]
    if rows.empty:
        return []
    contexts, note = _at(rows, context)
    rows = rows[rows.context.isin(contexts)]
    lines = [f"  loss: nats a token over dense, same documents{note}", f"    {frames.label(run, rows)}"]
    found = aggregates.perplexities(rows)
    found = found[(found.method != "dense") & found.delta.notna()]
    for (at, method, gate), group in found.groupby(["context", "method", "gate"], sort=False, dropna=False):
        named = f"{method} ({gate})" if isinstance(gate, str) else method
        lines.append(f"    {at}, {named}")
        for line in group.sort_values("sparsity_requested").itertuples():
            interval = f"[{line.delta_low:+.3f}, {line.delta_high:+.3f}]"
            own = pd.isna(line.sparsity_requested)
            skipped = f"own, {line.sparsity_realised:.0%}" if own else f"{line.sparsity_requested:.0%}"
            lines.append(f"      {skipped}: {line.delta:+.3f} {interval}")
    return lines
