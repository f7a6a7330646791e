"""Checks of the claims about quality: C3 to C10, C13, C14 and C17.

Losses are compared on the same documents, in nats per token. Each check raises MissingRows if the run lacks its
rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from seerbench.artefacts import frames, gate_sets, style
from seerbench.artefacts.paper_numbers import BEST_POOLING, TABLE_1_LONGEST_COMPARED
from seerbench.errors import MissingRows
from seerbench.report.evidence import Comparison, Evidence
from seerbench.rows import bootstrap
from seerbench.rows.gate_ref import PAPER_GATE, WITHOUT_ROPE
from seerbench.rows.store import Run

POOLINGS = 49  # Figure 10 compares this many.
CONTEXTS, YARN, ROPE, POOLING = "contexts", "yarn", "rope", "pooling"  # the experiments that the claims are about


def _documents(run: Run, experiment: str) -> pd.DataFrame:
    """Return the measured perplexity rows of an experiment, with document names that are unique over corpora."""
    rows = frames.experiment(run, "perplexity", experiment, "perplexity")
    rows = rows[rows.status == "measured"]
    return rows.assign(document=rows.corpus + "/" + rows.document)


def _extended(run: Run) -> pd.DataFrame:
    """Return the rows of the YaRN experiment at its longest context, as in Table 3."""
    rows = _documents(run, YARN)
    return rows[rows.context == rows.context.max()]


def _missing(run: Run, what: str, experiment: str) -> MissingRows:
    """Return the error for rows that a perplexity experiment lacks."""
    return MissingRows("perplexity", f"{what} in the experiment {experiment!r}", folder=run.folder)


def _nll(rows: pd.DataFrame, **where: object) -> pd.Series:
    """Return the NLL by document of the rows whose columns have these values; empty if there are none."""
    for name, value in where.items():
        match = np.isclose(rows[name].astype(float), value) if isinstance(value, float) else rows[name] == value
        rows = rows[match]
    return rows.set_index("document").nll


def _paper_gate(run: Run, rows: pd.DataFrame) -> pd.DataFrame:
    """Return SeerAttention's rows with the paper's gate set."""
    seer = rows[(rows.method == "seer") & gate_sets.is_set(rows.gate, PAPER_GATE)]
    if seer.empty:
        what = f"SeerAttention with the gate set {PAPER_GATE!r} among the perplexities"
        raise MissingRows("perplexity", what, folder=run.folder)
    return seer


def _sparsities(rows: pd.DataFrame) -> list[float]:
    """Return the requested sparsities of the rows, in ascending order."""
    return sorted(float(sparsity) for sparsity in rows.sparsity_requested.dropna().unique())


def _at(rows: pd.DataFrame, sparsity: float) -> pd.DataFrame:
    """Return the rows at a requested sparsity."""
    return rows[np.isclose(rows.sparsity_requested, sparsity)]


def _lower(what: str, other: pd.Series, ours: pd.Series) -> Comparison:
    """Compare two losses by document: the claim is that `ours` is at most `other`."""
    return Comparison(what, bootstrap.paired_delta(other, ours), 0.0, False, "nats")


def _printed_loss(paper: pd.DataFrame, sparsity: float, recipe: str) -> float:
    """Return the loss that Table 3 prints on PG19, in nats per token over its dense YaRN model."""
    rows = paper[(paper.artefact == "table3") & (paper.dataset == "PG19")]
    dense = rows.value[rows.method == "dense"].item()
    return math.log(rows.value[(rows.recipe == recipe) & np.isclose(rows.sparsity, sparsity)].item() / dense)


def _joint_loss(run: Run, paper: pd.DataFrame, sparsity: float) -> Evidence:
    """Compare the loss of joint fine-tuning at one sparsity with the loss that Table 3 prints."""
    rows = _extended(run)
    dense, joint = _nll(rows, recipe="yarn"), _nll(rows, recipe="joint", sparsity_requested=sparsity)
    if joint.empty or dense.empty:
        raise _missing(run, f"dense YaRN and joint fine-tuning at {sparsity:.0%}", YARN)
    loss = bootstrap.paired_delta(dense, joint)
    bound = _printed_loss(paper, sparsity, "joint")
    what = f"joint at {sparsity:.0%} against dense YaRN, {style.size(rows.context.max())}"
    return Evidence([Comparison(what, loss, bound, False, "nats")], rows)


def joint_half(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C3: the loss of joint fine-tuning at 50% is at most the paper's."""
    return _joint_loss(run, paper, 0.5)


def joint_most(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C4: the loss of joint fine-tuning at 90% is at most the paper's."""
    return _joint_loss(run, paper, 0.9)


def joint_beats_post(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C5: joint fine-tuning loses less than gates trained afterwards, at every sparsity that has both."""
    rows = _extended(run)
    comparisons = []
    for sparsity in _sparsities(rows[rows.recipe == "joint"]):
        post = _nll(rows, recipe="post", sparsity_requested=sparsity)
        joint = _nll(rows, recipe="joint", sparsity_requested=sparsity)
        if len(post):
            comparisons.append(_lower(f"joint against post at {sparsity:.0%}", post, joint))
    if not comparisons:
        raise _missing(run, "joint and post rows at one sparsity", YARN)
    return Evidence(comparisons, rows)


def post_half(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C6: the loss at 50% is at most the largest of Table 1's up to 64k, at every context."""
    rows = _documents(run, CONTEXTS)
    seer = _paper_gate(run, rows)
    contexts = pd.to_numeric(paper.context, errors="coerce")
    printed = paper[(paper.artefact == "table1") & (contexts <= TABLE_1_LONGEST_COMPARED)]
    dense = printed[printed.method == "dense"].set_index("context").value
    half = printed[(printed.method == "seer") & np.isclose(printed.sparsity, 0.5)].set_index("context").value
    bound = float(np.log(half / dense).max())
    comparisons = []
    for context in _contexts(seer):
        ours = _nll(seer, context=context, sparsity_requested=0.5)
        base = _nll(rows, context=context, method="dense")
        if len(ours) and len(base):
            loss = bootstrap.paired_delta(base, ours)
            comparisons.append(Comparison(style.size(context), loss, bound, False, "nats"))
    if not comparisons:
        raise _missing(run, "SeerAttention at 50% beside dense", CONTEXTS)
    return Evidence(comparisons, rows)


def _contexts(rows: pd.DataFrame) -> list[int]:
    """Return the contexts of the rows up to 64k, in ascending order."""
    return sorted(int(context) for context in rows.context.unique() if context <= TABLE_1_LONGEST_COMPARED)


Pairs = list[tuple[pd.DataFrame, pd.DataFrame]]


def _against(run: Run, method: str, pair: Callable[[pd.DataFrame, pd.DataFrame], Pairs]) -> Evidence:
    """Compare SeerAttention with `method` at every context up to 64k.

    pair: takes the rows of `method` and of SeerAttention at one context, and returns the pairs to compare.
    """
    rows = _documents(run, CONTEXTS)
    seer, baseline = _paper_gate(run, rows), rows[rows.method == method]
    comparisons = []
    for context in _contexts(seer):
        for other, ours in pair(baseline[baseline.context == context], seer[seer.context == context]):
            skipped, other_skipped = (each.sparsity_realised.mean() for each in (ours, other))
            what = f"{style.size(context)}, {skipped:.2f} against {other_skipped:.2f} skipped"
            comparisons.append(_lower(what, _nll(other), _nll(ours)))
    if not comparisons:
        raise _missing(run, f"SeerAttention and {method} at comparable sparsities", CONTEXTS)
    return Evidence(comparisons, rows, note="Sparsities are realised ones.")


def below_moa(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C7: SeerAttention has a lower perplexity than MoA.

    MoA is taken at the paper's sparsity or the next one measured above it, SeerAttention at the same or the next
    higher requested sparsity.
    """
    lowest = paper.sparsity[(paper.artefact == "table1") & (paper.method == "moa")].min()

    def pair(moa: pd.DataFrame, seer: pd.DataFrame) -> Pairs:
        of_moa = next((sparsity for sparsity in _sparsities(moa) if sparsity >= lowest), math.inf)
        of_seer = next((sparsity for sparsity in _sparsities(seer) if sparsity >= of_moa), None)
        return [] if of_seer is None else [(_at(moa, of_moa), _at(seer, of_seer))]

    return _against(run, "moa", pair)


def below_minference(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C8: SeerAttention has a lower perplexity than MInference.

    They are compared at every requested sparsity measured for both, and at the realised sparsity of each
    MInference configuration (official or searched), where SeerAttention is taken at its next sparsity that
    realises at least that.
    """

    def pair(minference: pd.DataFrame, seer: pd.DataFrame) -> Pairs:
        of_seer = _sparsities(seer)
        pairs = [
            (_at(minference, sparsity), _at(seer, sparsity))
            for sparsity in _sparsities(minference)
            if sparsity in of_seer
        ]
        realised = {sparsity: _at(seer, sparsity).sparsity_realised.mean() for sparsity in of_seer}
        without_request = minference[minference.sparsity_requested.isna()]
        for _, other in without_request.groupby("gate", dropna=False):
            wanted = other.sparsity_realised.mean()
            sparsity = next((sparsity for sparsity in of_seer if realised[sparsity] >= wanted), None)
            pairs += [] if sparsity is None else [(other, _at(seer, sparsity))]
        return pairs

    return _against(run, "minference", pair)


def minference_at_128k(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C9: MInference has a lower perplexity than SeerAttention at 128k and 90%."""
    rows = _documents(run, CONTEXTS)
    rows = rows[rows.context == 131072]
    minference = _nll(rows, method="minference", sparsity_requested=0.9)
    seer = _nll(rows, method="seer", sparsity_requested=0.9)
    if minference.empty or seer.empty:
        raise _missing(run, "SeerAttention and MInference at 128k and 90%", CONTEXTS)
    return Evidence([_lower("MInference against SeerAttention", seer, minference)], rows)


def longer_is_sparser(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C10: at each sparsity the loss against dense is lower at the longest context than at the shortest."""
    rows = _documents(run, CONTEXTS)
    seer = _paper_gate(run, rows)
    shortest, longest = seer.context.min(), seer.context.max()
    comparisons = []
    for sparsity in _sparsities(seer):
        short_loss, long_loss = (
            _nll(seer, context=context, sparsity_requested=sparsity) - _nll(rows, context=context, method="dense")
            for context in (shortest, longest)
        )
        if short_loss.notna().any() and long_loss.notna().any():
            what = f"{sparsity:.0%}: loss at {style.size(longest)} minus loss at {style.size(shortest)}"
            comparisons.append(_lower(what, short_loss.dropna(), long_loss.dropna()))
    if shortest == longest or not comparisons:
        raise _missing(run, "SeerAttention beside dense at two contexts", CONTEXTS)
    return Evidence(comparisons, rows)


def gate_needs_rope(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C13: beyond the gates' training length, the gate with RoPE loses less than the one without."""
    rows = _documents(run, ROPE)
    gates = rows[rows.method == "seer"]
    training = run.table("training")
    jobs = {gate_sets.job_of(gate) for gate in gates.gate.unique()}
    trained_at = training[(training.kind == "distill") & training.name.isin(jobs)].context.max()
    without_rope = gate_sets.is_set(gates.gate, WITHOUT_ROPE)
    comparisons = []
    for context in sorted(context for context in gates.context.unique() if context > trained_at):
        for sparsity in _sparsities(gates):
            where = {"context": context, "sparsity_requested": sparsity}
            without, with_rope = _nll(gates[without_rope], **where), _nll(gates[~without_rope], **where)
            if len(without) and len(with_rope):
                comparisons.append(_lower(f"{style.size(context)}, {sparsity:.0%}", without, with_rope))
    if not comparisons:
        raise _missing(run, "gates with and without RoPE beyond their training length", ROPE)
    return Evidence(comparisons, rows, note=f"With RoPE against without; trained at {style.size(trained_at)}.")


def best_pooling(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C14: the paper's pooling loses less than each of the other 48, at the highest sparsity.

    With this many comparisons on few documents some contradict by chance, so the note gives the place among all.
    """
    rows = _documents(run, POOLING)
    highest = max(_sparsities(rows))
    seer = _at(rows[rows.method == "seer"], highest)
    losses = {gate_sets.set_of(gate): _nll(group) for gate, group in seer.groupby("gate")}
    best = losses.pop(BEST_POOLING, None)
    if best is None or not losses:
        raise _missing(run, f"{BEST_POOLING} beside other poolings", POOLING)
    comparisons = [_lower(f"{BEST_POOLING} against {name}", other, best) for name, other in losses.items()]
    better = sum(comparison.interval[0] > 0 for comparison in comparisons)
    others = POOLINGS - 1
    missing = [] if len(losses) == others else [f"{others - len(losses)} of the {others} other poolings"]
    note = f"Place {better + 1} of {len(losses) + 1} at {highest:.0%} by the mean over {len(best)} documents."
    return Evidence(comparisons, rows, missing, note)


def tasks_at_or_above(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C17: the task score at 10% sparsity is at least that of dense, in every length bucket.

    Scores are paired by example, in percentage points, and averaged over tasks without weights. The tasks are
    those of LongBench where the run has them.
    """
    rows = run.table("tasks")
    longbench = rows[rows.definition.notna()]
    rows = (rows if longbench.empty else longbench).assign(bucket=lambda tasks: tasks.bucket.astype(str))
    rows = rows.assign(mark=rows.score.fillna(rows.correct.astype(float)))
    comparisons = []
    seer = rows[(rows.method == "seer") & np.isclose(rows.sparsity_requested.astype(float), 0.1)]
    for bucket, sparse in seer.groupby("bucket", sort=False):
        dense = rows[(rows.method == "dense") & (rows.bucket == bucket)]
        dense_marks, sparse_marks = (part.set_index(["task", "example"]).mark for part in (dense, sparse))
        gain = (100 * (sparse_marks - dense_marks)).dropna()
        if len(gain):
            of_tasks = [part.to_numpy() for _, part in gain.groupby("task")]
            comparisons.append(Comparison(bucket, bootstrap.mean_of_means(of_tasks), 0.0, True, "points"))
    if not comparisons:
        raise MissingRows("tasks", "SeerAttention at 10% beside dense among the tasks", folder=run.folder)
    note = f"The tasks are {', '.join(sorted(rows.task.unique()))}"
    return Evidence(comparisons, rows, note=f"{note}; not LongBench." if longbench.empty else f"{note}.")
