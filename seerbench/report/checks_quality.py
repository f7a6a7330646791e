"""checks_quality."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from seerbench.artefacts import frames, style
from seerbench.artefacts.fig10 import PAPER_BEST
from seerbench.errors import ResultsError
from seerbench.report.evidence import Evidence, Part
from seerbench.rows import bootstrap
from seerbench.rows.gate_ref import PAPER_GATE
from seerbench.rows.store import Run

TABLE_1_LONGEST = 65536  # C7 and C8 stop there; C9 is about what lies beyond


def _documents(run: Run, experiment: str) -> pd.DataFrame:
    rows = frames.experiment(run, "perplexity", experiment, "perplexity")
    rows = rows[rows.status == "measured"]
    return rows.assign(document=rows.corpus + "/" + rows.document)


def _extended(run: Run) -> pd.DataFrame:
    """The experiment `yarn` at its longest context, as in Table 3."""
    rows = _documents(run, "yarn")
    return rows[rows.context == rows.context.max()]


def _nll(rows: pd.DataFrame, **where: object) -> pd.Series:
    """NLL by document of the rows whose columns have these values; empty if there are none."""
    for name, value in where.items():
        near = np.isclose(rows[name].astype(float), value) if isinstance(value, float) else rows[name] == value
        rows = rows[near]
    return rows.set_index("document").nll


def _paper_gate(rows: pd.DataFrame) -> pd.DataFrame:
    """SeerAttention's rows with the paper's gate."""
    seer = rows[(rows.method == "seer") & rows.gate.astype(str).str.endswith(f":{PAPER_GATE}")]
    if seer.empty:
        raise ResultsError(f"SeerAttention with the gate {PAPER_GATE!r} among the perplexities")
    return seer


def _asked(rows: pd.DataFrame) -> list[float]:
    return sorted(float(sparsity) for sparsity in rows.sparsity_requested.dropna().unique())


def _printed_loss(paper: pd.DataFrame, sparsity: float, recipe: str) -> float:
    """Table 3 on PG19, in nats a token over its dense YaRN model."""
    rows = paper[(paper.artefact == "table3") & (paper.dataset == "PG19")]
    dense = rows.value[rows.method == "dense"].item()
    return math.log(rows.value[(rows.recipe == recipe) & np.isclose(rows.sparsity, sparsity)].item() / dense)


def _joint_loss(run: Run, paper: pd.DataFrame, sparsity: float) -> Evidence:
    rows = _extended(run)
    dense, joint = _nll(rows, recipe="yarn"), _nll(rows, recipe="joint", sparsity_requested=sparsity)
    if joint.empty or dense.empty:
        raise ResultsError(f"dense YaRN and joint fine-tuning at {sparsity:.0%} in the experiment 'yarn'")
    loss = bootstrap.paired_delta(dense, joint)
    bound = _printed_loss(paper, sparsity, "joint")
    what = f"joint at {sparsity:.0%} against dense YaRN, {style.size(rows.context.max())}"
    return Evidence([Part(what, loss, bound, False, "nats")], rows)


def joint_half(run: Run, paper: pd.DataFrame) -> Evidence:
    """C3: the loss of joint fine-tuning at 50%."""
    return _joint_loss(run, paper, 0.5)


def joint_most(run: Run, paper: pd.DataFrame) -> Evidence:
    """C4: the loss of joint fine-tuning at 90%."""
    return _joint_loss(run, paper, 0.9)


def joint_beats_post(run: Run, paper: pd.DataFrame) -> Evidence:
    """C5: joint fine-tuning below gates trained afterwards, at every sparsity that has both."""
    rows = _extended(run)
    parts = []
    for sparsity in _asked(rows[rows.recipe == "joint"]):
        post = _nll(rows, recipe="post", sparsity_requested=sparsity)
        joint = _nll(rows, recipe="joint", sparsity_requested=sparsity)
        if len(post):
            parts.append(_lower(f"joint against post at {sparsity:.0%}", post, joint))
    if not parts:
        raise ResultsError("joint and post rows at one sparsity in the experiment 'yarn'")
    return Evidence(parts, rows)


def _lower(what: str, other: pd.Series, mine: pd.Series) -> Part:
    """That `mine` loses less than `other` on the same documents."""
    return Part(what, bootstrap.paired_delta(other, mine), 0.0, False, "nats")


def post_half(run: Run, paper: pd.DataFrame) -> Evidence:
    """C6: the loss at 50% within the largest of Table 1's up to 64k, at every context."""
    rows = _documents(run, "contexts")
    seer = _paper_gate(rows)
    printed = paper[(paper.artefact == "table1") & (pd.to_numeric(paper.context, errors="coerce") <= 65536)]
    dense = printed[printed.method == "dense"].set_index("context").value
    half = printed[(printed.method == "seer") & np.isclose(printed.sparsity, 0.5)].set_index("context").value
    bound = float(np.log(half / dense).max())
    parts = []
    for context in _contexts(seer):
        mine = _nll(seer, context=context, sparsity_requested=0.5)
        other = _nll(rows, context=context, method="dense")
        if len(mine) and len(other):
            loss = bootstrap.paired_delta(other, mine)
            parts.append(Part(style.size(context), loss, bound, False, "nats"))
    if not parts:
        raise ResultsError("SeerAttention at 50% beside dense in the experiment 'contexts'")
    return Evidence(parts, rows)


def _contexts(rows: pd.DataFrame) -> list[int]:
    return sorted(int(context) for context in rows.context.unique() if context <= TABLE_1_LONGEST)


def _against(
    run: Run, method: str, pairs: Callable[[pd.DataFrame, pd.DataFrame], list[tuple[pd.DataFrame, pd.DataFrame]]]
) -> Evidence:
    """SeerAttention below `method` at every context up to 64k, for the pairs of (their rows, our rows)."""
    rows = _documents(run, "contexts")
    seer, theirs = _paper_gate(rows), rows[rows.method == method]
    parts = []
    for context in _contexts(seer):
        for other, mine in pairs(theirs[theirs.context == context], seer[seer.context == context]):
            kept = [part.sparsity_realised.mean() for part in (mine, other)]
            what = f"{style.size(context)}, {kept[0]:.2f} against {kept[1]:.2f} skipped"
            parts.append(_lower(what, _nll(other), _nll(mine)))
    if not parts:
        raise ResultsError(f"SeerAttention and {method} at comparable sparsities in the experiment 'contexts'")
    return Evidence(parts, rows, note="Sparsities are realised ones.")


def _at(rows: pd.DataFrame, sparsity: float) -> pd.DataFrame:
    return rows[np.isclose(rows.sparsity_requested, sparsity)]


def below_moa(run: Run, paper: pd.DataFrame) -> Evidence:
    """C7: below MoA at the sparsity that the paper gives it, or the next above; SeerAttention's no lower."""
    lowest = paper.sparsity[(paper.artefact == "table1") & (paper.method == "moa")].min()

    def pair(theirs: pd.DataFrame, ours: pd.DataFrame) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
        other = next((sparsity for sparsity in _asked(theirs) if sparsity >= lowest), math.inf)
        mine = next((sparsity for sparsity in _asked(ours) if sparsity >= other), None)
        return [] if mine is None else [(_at(theirs, other), _at(ours, mine))]

    return _against(run, "moa", pair)


def below_minference(run: Run, paper: pd.DataFrame) -> Evidence:
    """C8: below MInference at each requested sparsity that both have, and at those that its configurations come to.

    A configuration (official or searched) has a sparsity of its own; SeerAttention's is the next that really skips
    as much.
    """

    def pair(theirs: pd.DataFrame, ours: pd.DataFrame) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
        asked = [(_at(theirs, both), _at(ours, both)) for both in _asked(theirs) if both in _asked(ours)]
        skipped = {sparsity: _at(ours, sparsity).sparsity_realised.mean() for sparsity in _asked(ours)}
        for _, other in theirs[theirs.sparsity_requested.isna()].groupby("gate", dropna=False):
            mine = next((s for s in skipped if skipped[s] >= other.sparsity_realised.mean()), None)
            asked += [] if mine is None else [(other, _at(ours, mine))]
        return asked

    return _against(run, "minference", pair)


def minference_at_128k(run: Run, paper: pd.DataFrame) -> Evidence:
    """C9: MInference below SeerAttention at 128k and 90%."""
    rows = _documents(run, "contexts")
    rows = rows[rows.context == 131072]
    theirs = _nll(rows, method="minference", sparsity_requested=0.9)
    ours = _nll(rows, method="seer", sparsity_requested=0.9)
    if theirs.empty or ours.empty:
        raise ResultsError("SeerAttention and MInference at 128k and 90% in the experiment 'contexts'")
    return Evidence([_lower("MInference against SeerAttention", ours, theirs)], rows)


def longer_is_sparser(run: Run, paper: pd.DataFrame) -> Evidence:
    """C10: at each sparsity the loss against dense is lower at the longest context than at the shortest."""
    rows = _documents(run, "contexts")
    seer = _paper_gate(rows)
    short, long = seer.context.min(), seer.context.max()
    parts = []
    for sparsity in _asked(seer):
        loss = [
            _nll(seer, context=context, sparsity_requested=sparsity) - _nll(rows, context=context, method="dense")
            for context in (short, long)
        ]
        if all(part.notna().any() for part in loss):
            lost = [part.dropna() for part in loss]
            parts.append(
                _lower(f"{sparsity:.0%}: loss at {style.size(long)} less that at {style.size(short)}", *lost)
            )
    if short == long or not parts:
        raise ResultsError("SeerAttention beside dense at two contexts in the experiment 'contexts'")
    return Evidence(parts, rows)


def gate_needs_rope(run: Run, paper: pd.DataFrame) -> Evidence:
    """C13: beyond the gates' training length, the one with RoPE is below the one without."""
    rows = _documents(run, "rope")
    gates = rows[rows.method == "seer"]
    training = run.table("training")
    jobs = gates.gate.str.split(":").str[0].unique()
    trained_at = training[(training.kind == "distill") & training.name.isin(jobs)].context.max()
    bare = gates.gate.str.endswith("norope")
    parts = []
    for context in sorted(context for context in gates.context.unique() if context > trained_at):
        for sparsity in _asked(gates):
            where = {"context": context, "sparsity_requested": sparsity}
            without, with_rope = _nll(gates[bare], **where), _nll(gates[~bare], **where)
            if len(without) and len(with_rope):
                parts.append(_lower(f"{style.size(context)}, {sparsity:.0%}", without, with_rope))
    if not parts:
        raise ResultsError("gates with and without RoPE beyond their training length in the experiment 'rope'")
    return Evidence(parts, rows, note=f"With RoPE against without; trained at {style.size(trained_at)}.")


def best_pooling(run: Run, paper: pd.DataFrame) -> Evidence:
    """C14: the paper's pooling against each of the other 48, at the highest sparsity.

    So many comparisons on few documents contradict by chance too; the place among all is said beside them.
    """
    rows = _documents(run, "pooling")
    highest = max(_asked(rows))
    seer = _at(rows[rows.method == "seer"], highest)
    losses = {gate.split(":")[-1]: _nll(part) for gate, part in seer.groupby("gate")}
    mine = losses.pop(PAPER_BEST, None)
    if mine is None or not losses:
        raise ResultsError(f"{PAPER_BEST} beside other poolings in the experiment 'pooling'")
    parts = [_lower(f"{PAPER_BEST} against {name}", other, mine) for name, other in losses.items()]
    better = sum(part.interval[0] > 0 for part in parts)
    missing = [] if len(losses) == 48 else [f"{48 - len(losses)} of the 48 other poolings"]
    said = f"Place {better + 1} of {len(losses) + 1} at {highest:.0%} by the mean over {len(mine)} documents."
    return Evidence(parts, rows, missing, said)


def tasks_at_or_above(run: Run, paper: pd.DataFrame) -> Evidence:
    """C17: task score at 10% sparsity minus dense, example by example, mean over tasks, in every length bucket."""
    rows = run.table("tasks")
    here = rows[rows.definition.notna()]  # LongBench's, where a run has them
    rows = (rows if here.empty else here).assign(bucket=lambda kept: kept.bucket.astype(str))
    marks = rows.score.fillna(rows.correct.astype(float)).rename("mark")
    rows = rows.join(marks)
    parts = []
    seer = rows[(rows.method == "seer") & np.isclose(rows.sparsity_requested.astype(float), 0.1)]
    for bucket, found in seer.groupby("bucket", sort=False):
        dense = rows[(rows.method == "dense") & (rows.bucket == bucket)]
        key = ["task", "example"]
        scores = [part.set_index(key).mark for part in (dense, found)]
        gain = (100 * (scores[1] - scores[0])).dropna()
        if len(gain):
            tasks = [part.to_numpy() for _, part in gain.groupby("task")]
            parts.append(Part(bucket, bootstrap.mean_of_means(tasks), 0.0, True, "points"))
    if not parts:
        raise ResultsError("SeerAttention at 10% beside dense among the tasks")
    said = f"Tasks here: {', '.join(sorted(rows.task.unique()))}"
    return Evidence(parts, rows, note=f"{said}; not LongBench." if here.empty else f"{said}.")
