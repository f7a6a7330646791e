"""Checks of the claims of SeerAttention-R (arXiv:2506.08889) about decoding: R1 to R4.

Each check raises MissingRows if the run lacks its rows: cells of the sweep `decode`, or rows of experiments called
`decode` that say how tokens were decoded.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from seerbench.artefacts import frames, style
from seerbench.artefacts.decode_quality import decoded
from seerbench.artefacts.paper_numbers import BLOCK
from seerbench.errors import MissingRows
from seerbench.report.evidence import Comparison, Evidence
from seerbench.report.quality_rows import lower
from seerbench.rows import bootstrap
from seerbench.rows.store import Run

GATE, DENSE = "seer-r", "dense"
CONTEXTS = (8192, 131072)  # the shortest and the longest cache of the authors' kernel benchmark
SPARSITY = 0.9
BUDGET = 4096  # tokens
BASELINE = "FlashAttention-3 as the baseline"


def kernel_speedup(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check R1: the largest speed-up of attention over 90% fewer blocks is at least the paper's.

    The dense kernel here is PyTorch's SDPA, so what the claim speaks of is never measured as a whole.
    """
    cells, samples = frames.timings(run, "decode")
    on_gpu = run.table("runs").set_index("run_id").driver.notna().reindex(cells.run_id).to_numpy()
    asked = (cells.method == GATE) & np.isclose(cells.sparsity_requested.astype(float), SPARSITY)
    rows = cells[on_gpu & asked & cells.context.between(*CONTEXTS) & (cells.status == "measured")]
    rows = rows[rows.block_k == BLOCK]
    found = []
    for cell in rows.itertuples():
        ms = samples[(samples.run_id == cell.run_id) & (samples.cell == cell.cell) & (samples.stage == "attend")]
        times = {name: part.set_index("round").ms for name, part in ms.groupby("method")}
        if DENSE in times:
            what = f"{cell.implementation} over SDPA at {style.size(cell.context)}, batch {cell.batch}"
            found.append((what, bootstrap.paired_speedup(times[DENSE], times[GATE])))
    if not found:
        what = f"GPU rows of {GATE} at {SPARSITY:.0%} beside dense in the sweep 'decode'"
        raise MissingRows("cells", what, folder=run.folder)
    what, interval = max(found, key=lambda each: each[1][0])
    printed = paper[paper.unit == "x"].value.item()
    note = f"The largest of {len(found)} cells. Inputs are random: they say how many blocks are read, not which."
    return Evidence([Comparison(what, interval, printed, True, "x")], rows, [BASELINE], note)


def near_lossless(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check R2: with a budget of 4096 tokens the gate loses at most what the authors' table shows at that budget.

    Scores are paired by example, in percentage points. The tasks are those that the run has, in place of AIME24;
    they can support the claim or leave it undecided.
    """
    rows = _after_dense_prefill(run, "tasks")
    rows = rows.assign(points=100 * rows.score.astype(float).fillna(rows.correct.astype(float)))
    rows = rows[rows.points.notna() & (rows.context > BUDGET)]
    gate = rows[(rows.decode == GATE) & (rows.decode_budget == BUDGET) & (rows.decode_block == BLOCK)]
    comparisons = []
    for (experiment, context), sparse in gate.groupby(["experiment", "context"]):
        dense = rows[(rows.experiment == experiment) & (rows.context == context) & (rows.decode == DENSE)]
        dense, sparse = (part.set_index(["task", "example"]).points for part in (dense, sparse))
        if dense.index.intersection(sparse.index).size:
            words = f"{experiment}, {style.size(context)}"
            gain = bootstrap.paired_delta(dense, sparse)
            comparisons.append(Comparison(words, gain, -_largest_loss(paper), True, "points", ours=True))
    if not comparisons:
        what = f"scores of {GATE} with a budget of {BUDGET} tokens beside dense decoding, at longer contexts"
        raise MissingRows("tasks", what, folder=run.folder)
    tasks = ", ".join(sorted(gate.task.unique()))
    return Evidence(comparisons, gate, ["AIME24"], f"The tasks in place of AIME24 are {tasks}.")


def _largest_loss(paper: pd.DataFrame) -> float:
    """Return the largest loss of the authors' table on AIME24 with a budget of 4096 tokens, in points."""
    rows = paper[paper.task == "AIME24"]
    dense = rows[rows.budget.isna()].set_index("model").value
    return float((dense - rows[rows.budget == BUDGET].set_index("model").value).max())


def more_is_better(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check R3: each larger budget of a gate loses at most what the next smaller one does, on the same documents.

    The loss of decoded tokens stands for the accuracy of the authors' table.
    """
    rows = _after_dense_prefill(run, "perplexity")
    gate = rows[(rows.decode == GATE) & rows.decode_budget.notna() & (rows.status == "measured")]
    comparisons = []
    settings = ["experiment", "model", "corpus", "context", "decode_gate"]
    for (_, _, corpus, context, reference), part in gate.groupby(settings):
        losses = {int(budget): cell.set_index("document").nll for budget, cell in part.groupby("decode_budget")}
        for smaller, larger in zip(sorted(losses), sorted(losses)[1:], strict=False):
            words = f"{reference} on {corpus}, {style.size(context)}: {larger} against {smaller} tokens"
            comparisons.append(lower(words, losses[smaller], losses[larger]))
    if not comparisons:
        raise MissingRows("perplexity", f"losses of {GATE} with two budgets", folder=run.folder)
    return Evidence(comparisons, gate, ["AIME24"], "The loss of decoded tokens stands for accuracy.")


def compressed_keys(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check R4: what the gate keeps beside the cache is less than 1% of it, at the longest context of the run.

    Counted are the compressed keys with the room that is allocated for more of them, and the raw keys of the
    unfinished blocks.
    """
    cells, _ = frames.timings(run, "decode")
    rows = cells[(cells.method == GATE) & cells.kept_mib.notna() & (cells.block_k == BLOCK)]
    rows = rows[rows.context == rows.context.max()]
    if rows.empty:
        raise MissingRows("cells", f"{GATE} with blocks of {BLOCK} in the sweep 'decode'", folder=run.folder)
    bytes_of = rows.dtype.map({"float32": 4}).fillna(2)
    cache = 2 * rows.batch * rows.kv_heads * (rows.context + 1) * rows.head_dim * bytes_of / 2**20
    share = float((100 * rows.kept_mib / cache).max())
    what = f"of the cache at {style.size(rows.context.max())}"
    return Evidence([Comparison(what, (share,) * 3, 1.0, False, "%")], rows)


def _after_dense_prefill(run: Run, table: str) -> pd.DataFrame:
    """Return the rows of experiments called `decode` whose prefill was dense."""
    rows = decoded(run, table)
    return rows[rows.method == DENSE]
