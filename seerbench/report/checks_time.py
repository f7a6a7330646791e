"""Checks of the claims about time: C1, C2, C11, C12, C15 and C16.

Each check reads the timings of a GPU with the paper's blocks and raises MissingRows if the run has none.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from seerbench.artefacts import aggregates, frames, style
from seerbench.artefacts.paper_numbers import (
    BLOCK,
    LARGEST_GATE_SHARE,
    TABLE_4_CONTEXTS,
    TRAINING_KERNEL_CONTEXTS,
)
from seerbench.errors import MissingRows
from seerbench.report.evidence import Comparison, Evidence
from seerbench.rows import bootstrap
from seerbench.rows.schema import DISTURBED, RANDOM, RANDOM_WEIGHTS
from seerbench.rows.store import Run

# C12 says "same latency" without a number, and Figure 8 prints none. A ratio of at most this counts as the same.
SAME = 1.1
MAP_BYTES = 2  # per entry of the row maxima that Algorithm 1 keeps, in the dtype of the authors' code (bfloat16)
OUT_OF_MEMORY = ("out_of_memory", "refused")  # the naive kernel is refused where its maps would not fit


def _gpu_timings(run: Run, sweep: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return (cells, samples) of a sweep with the paper's blocks, measured on a GPU.

    On a GPU the method `dense` is PyTorch's FlashAttention-2 kernel (baselines/dense.py); it is renamed to `fa2`.
    """
    cells, samples = frames.timings(run, sweep)
    runs = run.table("runs").set_index("run_id")
    on_gpu = runs.driver.notna().reindex(cells.run_id).to_numpy()
    cells = cells[on_gpu & (cells.block_q == BLOCK)]
    if cells.empty:
        raise MissingRows("cells", f"GPU rows of the sweep {sweep!r} with blocks of {BLOCK}", folder=run.folder)
    if (cells[cells.method == "dense"].implementation == "sdpa-flash").all():
        cells, samples = (rows.assign(method=rows.method.replace("dense", "fa2")) for rows in (cells, samples))
    return cells, samples


def _speedup(run: Run, sweep: str, method: str, stage: str, printed: pd.Series) -> Evidence:
    """Compare a method with FlashAttention-2 at the context and sparsity of a printed speed-up."""
    cells, samples = _gpu_timings(run, sweep)
    context, sparsity = int(printed.context), printed.sparsity
    rows = (cells.method == method) & np.isclose(cells.sparsity_requested.astype(float), sparsity)
    rows = cells[rows & (cells.context == context) & (cells.status == "measured")]
    at, comparisons = f"{style.size(context)} and {sparsity:.0%}", []
    for cell in rows.itertuples():
        of_cell = samples[(samples.run_id == cell.run_id) & (samples.cell == cell.cell)]
        stages = {
            name: {stage_name: group.set_index("round").ms for stage_name, group in part.groupby("stage")}
            for name, part in of_cell.groupby("method")
        }
        base = aggregates.dense_time(stages.get("fa2", {}), stage)
        if base is not None:
            what = f"{cell.implementation} over FlashAttention-2 at {at}, {cell.mask} mask"
            faster = bootstrap.paired_speedup(base, stages[method][stage])
            comparisons.append(Comparison(what, faster, printed.value, True, "x"))
    if not comparisons:
        raise MissingRows("cells", f"{method} beside fa2 at {at} in the sweep {sweep!r}", folder=run.folder)
    return Evidence(comparisons, rows, note=_inputs(rows))


def kernel_speedup(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C1: the speed-up of the block-sparse kernel over FlashAttention-2, without block selection.

    The note gives the speed-up under the conditions of the authors' benchmark, if the run has it.
    """
    printed = paper[paper.artefact == "fig1c"].iloc[0]
    evidence = _speedup(run, "kernel", "block_sparse", "attend", printed)
    try:
        theirs = _speedup(run, "authors_kernel", "block_sparse", "attend", printed)
    except MissingRows:
        return evidence
    estimate, low, high = theirs.comparisons[0].interval
    conditions = "one mask for all heads, no forced diagonal, float16, as many key/value heads as query heads"
    note = (
        f"Under the conditions of the authors' benchmark ({conditions}): {estimate:.1f}x [{low:.1f}, {high:.1f}]."
    )
    return replace(evidence, note=f"{evidence.note} {note}".strip())


def attention_speedup(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C2: the speed-up of gate, top-k and attention together over FlashAttention-2."""
    return _speedup(run, "methods", "seer", "total", paper[paper.artefact == "fig5"].iloc[0])


def gate_share(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C11: the share of gate and top-k in the time of SeerAttention at 32k, paired by round."""
    cells, samples = _gpu_timings(run, "methods")
    rows = cells[(cells.context == 32768) & (cells.method == "seer") & (cells.status == "measured")]
    comparisons, of_dense = [], []
    for cell in rows.sort_values("sparsity_requested").itertuples():
        ms = samples[(samples.run_id == cell.run_id) & (samples.cell == cell.cell)]
        stages = {key: group.set_index("round").ms for key, group in ms.groupby(["method", "stage"])}
        plan = stages["seer", "plan"]
        estimate, low, high = bootstrap.paired_speedup(plan, stages["seer", "total"])
        percent = (100 * estimate, 100 * low, 100 * high)
        what = f"32k, {cell.sparsity_requested:.0%} skipped"
        comparisons.append(Comparison(what, percent, 100 * LARGEST_GATE_SHARE, False, "%"))
        dense = aggregates.dense_time({stage: ms for (name, stage), ms in stages.items() if name == "fa2"}, "total")
        if dense is not None:
            of_dense.append(100 * bootstrap.paired_speedup(plan, dense)[0])
    if not comparisons:
        raise MissingRows("cells", "SeerAttention at 32k in the sweep 'methods'", folder=run.folder)
    note = ""
    if of_dense:
        note = (
            f"Of FlashAttention-2's time they are {min(of_dense):.2f}% to {max(of_dense):.2f}%: the faster the "
            "sparse attention, the larger is their share of its time."
        )
    missing = _disturbed(cells[(cells.context == 32768) & (cells.method == "seer")])
    return Evidence(comparisons, rows, missing, f"{note} {_inputs(rows)}".strip())


def training_kernel(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C12: time and memory of the training kernel over FlashAttention-2, and where the naive one fails.

    "Near-equal memory" is said of a kernel that keeps the row maxima of Algorithm 1 beside what FlashAttention-2
    keeps, so that much more memory is near-equal here too.
    """
    cells, samples = _gpu_timings(run, "training_kernel")
    cells = cells[cells.context.between(*TRAINING_KERNEL_CONTEXTS)].sort_values("context", kind="stable")
    comparisons, ratios = [], []
    for line in aggregates.speedups(cells, samples, "attend").itertuples():
        if line.method == "pooled" and line.base == "fa2" and line.status == "measured":
            slower = (1 / line.value, 1 / line.high, 1 / line.low)
            what = f"time over FlashAttention-2's, {style.size(line.context)}"
            comparisons.append(Comparison(what, slower, SAME, False, "x", ours=True))
    measured = cells[cells.peak_mib.notna()]
    for context, of_context in measured.groupby("context"):
        peak = of_context.groupby("method").peak_mib.max()
        if {"pooled", "fa2"} <= set(peak.index):
            more = peak["pooled"] - peak["fa2"]  # Counted, not sampled: equal in every run.
            what = f"memory beyond FlashAttention-2's, {style.size(context)}"
            allowed = _row_maxima_mib(of_context.iloc[0])
            comparisons.append(Comparison(what, (more, more, more), allowed, False, "MiB"))
            ratios.append(f"{peak['pooled'] / peak['fa2']:.2f}x at {style.size(context)}")
    if not comparisons:
        what = "the training kernel beside fa2 in the sweep 'training_kernel'"
        raise MissingRows("cells", what, folder=run.folder)
    naive = cells[cells.method == "naive"]
    failed = naive[naive.status.isin(OUT_OF_MEMORY)]
    longest = TRAINING_KERNEL_CONTEXTS[1]
    missing = [] if cells.context.max() == longest else [style.size(longest)]
    missing += _disturbed(cells[cells.method.isin(["pooled", "fa2"])])
    if failed.empty:
        missing.append("a context at which the naive kernel does not fit")
        note = "The naive kernel ran at every context measured."
    else:
        first = failed.iloc[0]
        shortest = style.size(failed.context.min())
        note = f"The naive kernel at {shortest}: {first.status.replace('_', ' ')} ({first.reason})."
    memory = f"Memory over FlashAttention-2's: {', '.join(ratios)}." if ratios else ""
    return Evidence(comparisons, cells, missing, " ".join(filter(None, (memory, note, _inputs(cells)))))


def _disturbed(cells: pd.DataFrame) -> list[str]:
    """Return what is missing because cells were disturbed: no entry, or one with their contexts."""
    contexts = sorted(cells[cells.status == DISTURBED].context.unique())
    return [f"undisturbed timings at {', '.join(map(style.size, contexts))}"] if contexts else []


def _row_maxima_mib(cell: pd.Series) -> float:
    """Return the MiB of the row maxima of Algorithm 1: one per query row, key block and query head."""
    blocks = -(-cell.context // BLOCK)
    return MAP_BYTES * cell.batch * cell.q_heads * cell.context * blocks / 2**20


def _first_tokens(run: Run, base: str, paper: pd.DataFrame) -> tuple[dict[int, Comparison], Evidence]:
    """Compare SeerAttention's time to first token with that of `base` at each context of Table 4.

    At each context it is the highest measured sparsity that is at most the paper's, since a lower one is slower.
    Returns the comparisons by context, and all of them as evidence.
    """
    cells, samples = _gpu_timings(run, "ttft")
    printed = paper[(paper.artefact == "table4") & (paper.method == "seer")]
    paper_sparsity = dict(zip(printed.context.astype(int), printed.sparsity))
    samples = samples[samples.stage == "ttft"]
    rounds = {key: group.set_index("round").ms for key, group in samples.groupby(["run_id", "cell", "method"])}
    comparisons, missing = {}, []
    for context in TABLE_4_CONTEXTS:
        seer = cells[(cells.context == context) & (cells.method == "seer") & (cells.status == "measured")]
        seer = seer[seer.sparsity_requested <= paper_sparsity[context] + 1e-9].sort_values("sparsity_requested")
        with_base = [cell for cell in seer.itertuples() if (cell.run_id, cell.cell, base) in rounds]
        if not with_base:
            missing.append(style.size(context))
            continue
        cell = with_base[-1]
        faster = bootstrap.paired_speedup(
            rounds[cell.run_id, cell.cell, base], rounds[cell.run_id, cell.cell, "seer"]
        )
        sparsities = f"{cell.sparsity_requested:.0%} skipped (paper: {paper_sparsity[context]:.0%})"
        comparisons[context] = Comparison(f"{style.size(context)}, {sparsities}", faster, 1.0, True, "x")
    if not comparisons:
        what = f"SeerAttention beside {base} at 8k to 128k in the sweep 'ttft'"
        raise MissingRows("cells", what, folder=run.folder)
    return comparisons, Evidence(list(comparisons.values()), cells, missing, _inputs(cells))


def first_token_dense(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C15: time to first token is below FlashAttention-2's everywhere, at 128k by the paper's factor."""
    comparisons, evidence = _first_tokens(run, "fa2", paper)
    longest = TABLE_4_CONTEXTS[-1]
    seconds = paper[(paper.artefact == "table4") & (paper.context == str(longest))].set_index("method").value
    factor = round(seconds["dense"] / seconds["seer"], 2)
    by_factor = []
    if longest in comparisons:
        what, interval = f"the paper's factor: {comparisons[longest].what}", comparisons[longest].interval
        by_factor.append(Comparison(what, interval, factor, True, "x"))
    return Evidence([*evidence.comparisons, *by_factor], evidence.rows, evidence.missing, evidence.note)


def first_token_minference(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C16: time to first token is below MInference's at every context."""
    _, evidence = _first_tokens(run, "minference", paper)
    return evidence


def _inputs(cells: pd.DataFrame) -> str:
    """Return a sentence on the inputs if they are not those of a trained model."""
    if (cells.inputs_kind == RANDOM_WEIGHTS).any():
        return "The model has random weights."
    return "The inputs are random numbers." if (cells.inputs_kind == RANDOM).any() else ""
