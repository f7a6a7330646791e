"""checks_time."""

from __future__ import annotations

import numpy as np
import pandas as pd

from seerbench.artefacts import aggregates, frames, style
from seerbench.errors import ResultsError
from seerbench.report.evidence import SAME, Evidence, Part
from seerbench.rows import bootstrap
from seerbench.rows.store import Run

PAPER_BLOCK = 64
GATE_SHARE = 0.03  # C11: "1-3% at 32k"
TTFT_CONTEXTS = (8192, 16384, 32768, 65536, 131072)  # Table 4


def _gpu_timings(run: Run, sweep: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(cells, samples) of a sweep with the paper's blocks, if a GPU measured it.

    `dense` on a GPU is PyTorch's FlashAttention-2 kernel (baselines/dense.py) and is called "fa2" here.
    """
    cells, samples = frames.timed(run, sweep)
    runs = run.table("runs").set_index("run_id")
    on_gpu = runs.driver.notna().reindex(cells.run_id).to_numpy()
    cells = cells[on_gpu & (cells.block_q == PAPER_BLOCK)]
    if cells.empty:
        raise ResultsError(f"GPU rows of the sweep {sweep!r} with blocks of {PAPER_BLOCK}")
    if (cells[cells.method == "dense"].implementation == "sdpa-flash").all():
        cells, samples = (part.assign(method=part.method.replace("dense", "fa2")) for part in (cells, samples))
    return cells, samples


def _speedup(run: Run, sweep: str, method: str, stage: str, printed: pd.Series) -> Evidence:
    """One method against FlashAttention-2 at the context and sparsity of one printed number."""
    cells, samples = _gpu_timings(run, sweep)
    context, sparsity = int(printed.context), printed.sparsity
    own = (cells.method == method) & np.isclose(cells.sparsity_requested.astype(float), sparsity)
    own = cells[own & (cells.context == context) & (cells.status == "measured")]
    at, parts = f"{style.size(context)} and {sparsity:.0%}", []
    for cell in own.itertuples():
        beside = samples[(samples.run_id == cell.run_id) & (samples.cell == cell.cell)]
        ms = {key: part.set_index("round").ms for key, part in beside.groupby(["method", "stage"])}
        base = next((ms["fa2", name] for name in (stage, *aggregates.DENSE_STAGES) if ("fa2", name) in ms), None)
        if base is not None:
            faster = bootstrap.paired_speedup(base, ms[method, stage])
            what = f"{cell.implementation} over FlashAttention-2 at {at}, {cell.mask} mask"
            parts.append(Part(what, faster, printed.value, True, "x"))
    if not parts:
        raise ResultsError(f"{method} beside fa2 at {at} in the sweep {sweep!r}")
    return Evidence(parts, own, note=_inputs(own))


def kernel_speedup(run: Run, paper: pd.DataFrame) -> Evidence:
    """C1: the block-sparse kernel over FlashAttention-2, choosing not included."""
    return _speedup(run, "kernel", "block_sparse", "attend", paper[paper.artefact == "fig1c"].iloc[0])


def attention_speedup(run: Run, paper: pd.DataFrame) -> Evidence:
    """C2: gate, top-k and attention together over FlashAttention-2."""
    return _speedup(run, "methods", "seer", "total", paper[paper.artefact == "fig5"].iloc[0])


def gate_share(run: Run, paper: pd.DataFrame) -> Evidence:
    """C11: the share of gate and top-k in the time of SeerAttention at 32k, round by round."""
    cells, samples = _gpu_timings(run, "methods")
    here = cells[(cells.context == 32768) & (cells.method == "seer") & (cells.status == "measured")]
    parts = []
    for cell in here.itertuples():
        ms = samples[(samples.run_id == cell.run_id) & (samples.cell == cell.cell) & (samples.method == "seer")]
        stages = {stage: part.set_index("round").ms for stage, part in ms.groupby("stage")}
        share = bootstrap.paired_speedup(stages["plan"], stages["total"])
        share = tuple(100 * number for number in share)
        parts.append(Part(f"32k, {cell.sparsity_requested:.0%} skipped", share, 100 * GATE_SHARE, False, "%"))
    if not parts:
        raise ResultsError("SeerAttention at 32k in the sweep 'methods'")
    return Evidence(parts, here, note=_inputs(here))


def training_kernel(run: Run, paper: pd.DataFrame) -> Evidence:
    """C12: the pooled-map kernel's time and memory over FlashAttention-2's; the naive one runs out of memory."""
    cells, samples = _gpu_timings(run, "training_kernel")
    cells = cells[(cells.context >= 1024) & (cells.context <= 65536)]
    parts = []
    for line in aggregates.speedups(cells, samples, "attend").itertuples():
        if line.method == "pooled" and line.base == "fa2" and line.status == "measured":
            slower = (1 / line.value, 1 / line.high, 1 / line.low)
            parts.append(
                Part(f"time over FlashAttention-2's, {style.size(line.context)}", slower, SAME, False, "x")
            )
    peaks = cells.pivot_table(index="context", columns="method", values="peak_mib")
    for context, peak in peaks.iterrows():
        if {"pooled", "fa2"} <= set(peak.dropna().index):
            ratio = peak.pooled / peak.fa2  # counted, not sampled: the same each time
            exact = (ratio, ratio, ratio)
            parts.append(Part(f"memory over FlashAttention-2's, {style.size(context)}", exact, SAME, False, "x"))
    if not parts:
        raise ResultsError("the pooled-map kernel beside fa2 in the sweep 'training_kernel'")
    naive = cells[cells.method == "naive"]
    lost = naive[naive.status != "measured"]
    missing = [] if cells.context.max() == 65536 else ["64k"]
    if lost.empty:
        missing.append("a context at which the naive kernel does not fit")
        said = "The naive kernel ran at every context measured."
    else:
        said = (
            f"The naive kernel at {style.size(lost.context.min())}: {lost.status.iloc[0].replace('_', ' ')} "
            f"({lost.reason.iloc[0]})."
        )
    return Evidence(parts, cells, missing, f"{said} {_inputs(cells)}".strip())


def _first_tokens(run: Run, base: str, paper: pd.DataFrame) -> Evidence:
    """Time to first token of SeerAttention against `base` at each context of Table 4.

    At each, the highest sparsity measured that is not above the paper's: less sparse than there is slower.
    """
    cells, samples = _gpu_timings(run, "ttft")
    printed = paper[(paper.artefact == "table4") & (paper.method == "seer")]
    asked = dict(zip(printed.context.astype(int), printed.sparsity))
    samples = samples[samples.stage == "ttft"]
    rounds = {key: part.set_index("round").ms for key, part in samples.groupby(["run_id", "cell", "method"])}
    parts, missing = [], []
    for context in TTFT_CONTEXTS:
        seer = cells[(cells.context == context) & (cells.method == "seer") & (cells.status == "measured")]
        seer = seer[seer.sparsity_requested <= asked[context] + 1e-9].sort_values("sparsity_requested")
        both = [cell for cell in seer.itertuples() if (cell.run_id, cell.cell, base) in rounds]
        if not both:
            missing.append(style.size(context))
            continue
        cell = both[-1]
        faster = bootstrap.paired_speedup(
            rounds[cell.run_id, cell.cell, base], rounds[cell.run_id, cell.cell, "seer"]
        )
        at = f"{style.size(context)}, {cell.sparsity_requested:.0%} skipped (paper: {asked[context]:.0%})"
        parts.append(Part(at, faster, 1.0, True, "x"))
    if not parts:
        raise ResultsError(f"SeerAttention beside {base} at 8k to 128k in the sweep 'ttft'")
    return Evidence(parts, cells, missing, _inputs(cells))


def first_token_dense(run: Run, paper: pd.DataFrame) -> Evidence:
    """C15: time to first token below FlashAttention-2's at every context, by the paper's factor at 128k."""
    found = _first_tokens(run, "fa2", paper)
    seconds = paper[(paper.artefact == "table4") & (paper.context == "131072")].set_index("method").value
    factor = round(seconds["dense"] / seconds["seer"], 2)
    longest = [part for part in found.parts if part.what.startswith("128k")]
    more = [Part("the paper's factor: " + part.what, part.interval, factor, True, "x") for part in longest]
    return Evidence([*found.parts, *more], found.rows, found.missing, found.note)


def first_token_minference(run: Run, paper: pd.DataFrame) -> Evidence:
    """C16: time to first token below MInference's at every context."""
    return _first_tokens(run, "minference", paper)


def _inputs(cells: pd.DataFrame) -> str:
    if cells.inputs.str.startswith("random weights").any():
        return "The model has random weights."
    return "Inputs are random numbers." if cells.inputs.str.startswith("random").any() else ""
