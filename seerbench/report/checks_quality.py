"""Checks of the claims about quality: C3 to C10, C13, C14 and C17.

Losses are compared on the same documents, in nats per token. A claim that names lengths is judged at those of them
that the run has. A run with small models that has none of them is judged at its own lengths, in place of the
paper's, as its model is in place of the paper's. Each check raises MissingRows if the run lacks its rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from seerbench.artefacts import colors, frames, gate_sets, style
from seerbench.artefacts.paper_numbers import (
    BEST_POOLING,
    LONGBENCH_BUCKETS,
    TABLE_1_COMPARED,
    TABLE_1_LAST,
    TABLE_1_LOWEST,
    TABLE_3_CONTEXT,
)
from seerbench.data import longbench
from seerbench.errors import MissingRows
from seerbench.report.evidence import Comparison, Evidence
from seerbench.rows import bootstrap, requests
from seerbench.rows.equal_sparsity import nll_at, realised, settings
from seerbench.rows.gate_ref import PAPER_GATE, WITHOUT_ROPE
from seerbench.rows.schema import SCALE_KINDS
from seerbench.rows.store import Run

POOLINGS = 49  # Figure 10 compares this many.
HALF_A_DIGIT = 0.005  # The paper prints perplexities with two decimals.
RESOLUTION = HALF_A_DIGIT / 10  # in nats: half of the last decimal of a perplexity of 10, as in Table 1
# How C17 is measured: as version 1 of the authors' code has it, which is the one of Table 2.
PROTOCOL = "Every row of the prompt is sparse; answers are decoded with dense attention."
# The experiments that the claims are about. Those on the paper's second kind of text, mathematics, end in "-math".
CONTEXTS, CONTEXTS_MATH, YARN, ROPE, POOLING = "contexts", "contexts-math", "yarn", "rope", "pooling"


def _measured(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the perplexity rows that were measured, with document names that are unique over corpora."""
    rows = rows[rows.status == "measured"]
    return rows.assign(document=rows.corpus + "/" + rows.document)


def _documents(run: Run, experiment: str) -> pd.DataFrame:
    """Return the measured perplexity rows of an experiment."""
    return _measured(frames.experiment(run, "perplexity", experiment, "perplexity"))


def _at_context(rows: pd.DataFrame, context: int) -> pd.DataFrame:
    """Return the rows at a context, or those at the longest one if there are none."""
    at_context = rows[rows.context == context]
    return at_context if len(at_context) else rows[rows.context == rows.context.max()]


def _lengths(run: Run, rows: pd.DataFrame, contexts: Sequence[int]) -> tuple[list[int], list[str]]:
    """Return (contexts to judge at, contexts that are missing in words) for a claim that names `contexts`.

    A run at the paper's scale lacks those that it did not measure. A smaller one is judged at those that it has,
    or at all of its own if it has none of them.
    """
    measured = sorted(int(context) for context in rows.context.unique())
    named = [context for context in measured if context in contexts]
    if not _at_papers_scale(run, rows):
        return named or measured, []
    return named, [style.size(context) for context in contexts if context not in named]


def _at_papers_scale(run: Run, rows: pd.DataFrame) -> bool:
    """Return whether all executions that measured the rows are at the paper's scale."""
    runs = run.table("runs")
    return set(runs.scale_kind[runs.run_id.isin(rows.run_id)]) == {SCALE_KINDS[-1]}


def _missing(run: Run, what: str, experiment: str) -> MissingRows:
    """Return the error for rows that a perplexity experiment lacks."""
    return MissingRows("perplexity", f"{what} in the experiment {experiment!r}", folder=run.folder)


def _nll(rows: pd.DataFrame, **where: object) -> pd.Series:
    """Return the NLL by document of the rows whose columns have these values; empty if there are none."""
    for name, value in where.items():
        match = np.isclose(rows[name].astype(float), value) if isinstance(value, float) else rows[name] == value
        rows = rows[match]
    return rows.set_index("document").nll


def _paper_gate(run: Run, rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return (all rows of a model, SeerAttention's among them) for the first gate job with the paper's gate set."""
    seer = rows[(rows.method == "seer") & gate_sets.is_set(rows.gate, PAPER_GATE)]
    if seer.empty:
        what = f"SeerAttention with the gate set {PAPER_GATE!r} among the perplexities"
        raise MissingRows("perplexity", what, folder=run.folder)
    of_model = rows[rows.model == seer.model.iloc[0]]
    return of_model, of_model[(of_model.method == "seer") & (of_model.gate == seer.gate.iloc[0])]


def _sparsities(rows: pd.DataFrame) -> list[float]:
    """Return the requested sparsities of the rows, in ascending order."""
    return sorted(float(sparsity) for sparsity in rows.sparsity_requested.dropna().unique())


def _at(rows: pd.DataFrame, sparsity: float) -> pd.DataFrame:
    """Return the rows at a requested sparsity."""
    return rows[np.isclose(rows.sparsity_requested, sparsity)]


def _lower(what: str, other: pd.Series, ours: pd.Series) -> Comparison:
    """Compare two losses by document: the claim is that `ours` is at most `other`."""
    return Comparison(what, bootstrap.paired_delta(other, ours), 0.0, False, "nats", RESOLUTION)


def _printed_loss(paper: pd.DataFrame, sparsity: float, recipe: str) -> tuple[float, float]:
    """Return the loss that Table 3 prints on PG19 in nats per token over its dense YaRN model, and its rounding."""
    rows = paper[(paper.artefact == "table3") & (paper.dataset == "PG19")]
    dense = rows.value[rows.method == "dense"].item()
    return _loss_of(dense, rows.value[(rows.recipe == recipe) & np.isclose(rows.sparsity, sparsity)].item())


def _loss_of(dense: float, sparse: float) -> tuple[float, float]:
    """Return (loss in nats per token, by how much more it may be) of two perplexities printed with two decimals."""
    loss = math.log(sparse / dense)
    return loss, math.log((sparse + HALF_A_DIGIT) / (dense - HALF_A_DIGIT)) - loss


def _joint_loss(run: Run, paper: pd.DataFrame, sparsity: float) -> Evidence:
    """Compare the loss of joint fine-tuning at one sparsity with the loss that Table 3 prints."""
    rows = frames.as_in_paper(_documents(run, YARN))
    _, missing = _lengths(run, rows, (TABLE_3_CONTEXT,))
    rows = _at_context(rows, TABLE_3_CONTEXT)
    dense, joint = _nll(rows, recipe="yarn"), _nll(rows, recipe="joint", sparsity_requested=sparsity)
    if joint.empty or dense.empty:
        raise _missing(run, f"dense YaRN and joint fine-tuning at {sparsity:.0%}", YARN)
    bound, rounding = _printed_loss(paper, sparsity, "joint")
    what = f"joint at {sparsity:.0%} against dense YaRN, {style.size(rows.context.max())}"
    loss = bootstrap.paired_delta(dense, joint)
    return Evidence([Comparison(what, loss, bound, False, "nats", rounding)], rows, missing)


def joint_half(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C3: the loss of joint fine-tuning at 50% is at most the paper's."""
    return _joint_loss(run, paper, 0.5)


def joint_most(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C4: the loss of joint fine-tuning at 90% is at most the paper's."""
    return _joint_loss(run, paper, 0.9)


def joint_beats_post(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C5: joint fine-tuning loses less than gates trained afterwards, at every sparsity, on both texts."""
    every = _measured(frames.as_in_paper(frames.experiments(run, "perplexity", YARN, "perplexity")))
    parts, comparisons = [], []
    for corpus, rows in every.groupby("corpus", sort=False):
        rows = _at_context(rows, TABLE_3_CONTEXT)
        parts.append(rows)
        for sparsity in _sparsities(rows[rows.recipe == "joint"]):
            post = _nll(rows, recipe="post", sparsity_requested=sparsity)
            joint = _nll(rows, recipe="joint", sparsity_requested=sparsity)
            if len(post):
                comparisons.append(_lower(f"{corpus}, joint against post at {sparsity:.0%}", post, joint))
    if not comparisons:
        raise _missing(run, "joint and post rows at one sparsity", YARN)
    _, missing = _lengths(run, every, (TABLE_3_CONTEXT,))
    one_text = ["a second text beside " + str(every.corpus.iloc[0])] if len(parts) == 1 else []
    return Evidence(comparisons, pd.concat(parts), [*missing, *one_text])


def post_half(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C6: the loss at 50% is at most the largest of Table 1's from 8k to 64k, at each of these contexts."""
    rows, seer = _paper_gate(run, _documents(run, CONTEXTS))
    printed = paper[(paper.artefact == "table1") & paper.context.isin(map(str, TABLE_1_COMPARED))]
    dense = printed[printed.method == "dense"].set_index("context").value
    half = printed[(printed.method == "seer") & np.isclose(printed.sparsity, 0.5)].set_index("context").value
    bound, rounding = max(_loss_of(dense[context], half[context]) for context in half.index)
    comparisons = []
    contexts, missing = _lengths(run, seer, TABLE_1_COMPARED)
    for context in contexts:
        ours = _nll(seer, context=context, sparsity_requested=0.5)
        base = _nll(rows, context=context, method="dense")
        if len(ours) and len(base):
            loss = bootstrap.paired_delta(base, ours)
            comparisons.append(Comparison(style.size(context), loss, bound, False, "nats", rounding))
    if not comparisons:
        raise _missing(run, "SeerAttention at 50% beside dense", CONTEXTS)
    return Evidence(comparisons, rows[rows.context.isin(contexts)], missing)


def _against(run: Run, method: str, choose: Callable[[pd.DataFrame], pd.DataFrame]) -> Evidence:
    """Compare SeerAttention with `method` at equal realised sparsity, at the contexts of Table 1 up to 64k.

    SeerAttention is interpolated to the realised sparsity of each setting of `method` (rows/equal_sparsity.py). A
    setting outside its measured range says nothing.

    Args:
        run: the run.
        method: the name of the other method.
        choose: returns those rows of `method` at one context, refused ones among them, that the claim is about.
    """
    every = frames.experiment(run, "perplexity", CONTEXTS, "perplexity")
    rows, seer = _paper_gate(run, _measured(every))
    others = every[(every.method == method) & (every.model == seer.model.iloc[0])]
    others = others.assign(document=others.corpus + "/" + others.document)
    contexts, missing = _lengths(run, seer, TABLE_1_COMPARED)
    comparisons = []
    for context in contexts:
        ours, chosen = seer[seer.context == context], choose(others[others.context == context])
        compared = [_at_equal_sparsity(style.size(context), other, ours) for other in settings(chosen)]
        found = [comparison for comparison in compared if comparison is not None]
        comparisons += found
        if not found:
            missing.append(f"{style.size(context)} ({_why_not(chosen)})")
    if not comparisons:
        what = f"SeerAttention and {colors.display(method)} at equal sparsity ({', '.join(missing)})"
        raise _missing(run, what, CONTEXTS)
    note = "Sparsities are realised ones; SeerAttention is interpolated between its measured ones."
    return Evidence(comparisons, rows[rows.context.isin(contexts)], missing, note)


def _at_equal_sparsity(what: str, other: pd.DataFrame, ours: pd.DataFrame) -> Comparison | None:
    """Compare one setting of a method with `ours` at its realised sparsity; None outside our measured range."""
    nll = nll_at(ours, realised(other))
    return None if nll is None else _lower(f"{what}, both {realised(other):.2f} skipped", _nll(other), nll)


def _why_not(chosen: pd.DataFrame) -> str:
    """Return why no setting of a method can be compared with SeerAttention at one context."""
    reasons = [f"{realised(setting):.2f} skipped is outside SeerAttention's range" for setting in settings(chosen)]
    reasons += list(chosen.reason[chosen.status != "measured"].dropna().unique())
    return "; ".join(reasons) or "not measured"


def _own(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a method at its own sparsity."""
    return rows[rows.sparsity_requested.isna()]


def below_moa(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C7: SeerAttention has a lower perplexity than MoA at equal sparsity.

    MoA is taken where the paper has it: at its own sparsity, and at the lowest requested one.
    """

    def choose(rows: pd.DataFrame) -> pd.DataFrame:
        return rows[rows.sparsity_requested.isna() | (rows.sparsity_requested == rows.sparsity_requested.min())]

    return _against(run, "moa", choose)


def below_minference(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C8: SeerAttention has a lower perplexity than MInference at equal sparsity.

    MInference is taken at its own sparsity, as in the paper, or at each requested one if that was not measured.
    """
    return _against(run, "minference", lambda rows: _own(rows) if len(_own(rows)) else rows)


def minference_at_128k(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C9: MInference has a lower perplexity than SeerAttention at 128k and 90%.

    MInference is taken at its own sparsity, as in the paper, or at 90% if that was not measured. SeerAttention is
    interpolated to its realised sparsity.
    """
    rows = _documents(run, CONTEXTS)
    rows = rows[rows.context == TABLE_1_LAST]
    minference = rows[rows.method == "minference"]
    minference = _own(minference) if len(_own(minference)) else _at(minference, 0.9)
    if minference.empty:
        raise _missing(run, "SeerAttention and MInference at 128k and 90%", CONTEXTS)
    _, seer = _paper_gate(run, rows)
    other = settings(minference)[-1]
    nll = nll_at(seer, realised(other))
    if nll is None:
        raise _missing(run, f"SeerAttention at 128k and MInference's {realised(other):.2f}", CONTEXTS)
    what = f"MInference against SeerAttention, both {realised(other):.2f} skipped"
    return Evidence([_lower(what, nll, _nll(other))], rows)


def longer_is_sparser(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C10: at equal sparsity the loss against dense is lower at the longest context than at the shortest.

    Each sparsity from Table 1's lowest on is taken at the shortest context that has it. The loss at the longest one
    is interpolated to that realised sparsity, which can only make it larger.

    Figure 4 has mathematics, with two models; a run without that text is judged on its own.
    """
    names = requests.rows(run, "perplexity").experiment.unique()
    math_parts = [name for name in names if name == CONTEXTS_MATH or name.startswith(f"{CONTEXTS_MATH}-")]
    every = pd.concat([_documents(run, name) for name in math_parts or [CONTEXTS]])
    comparisons, parts = [], []
    for model, rows in every.groupby("model", sort=False):
        if not gate_sets.is_set(rows.gate, PAPER_GATE).any():
            continue
        rows, seer = _paper_gate(run, rows)
        parts.append(rows)
        longest = seer.context.max()
        dense = {context: _nll(rows, context=context, method="dense") for context in seer.context.unique()}
        for sparsity in _sparsities(seer[seer.sparsity_requested >= TABLE_1_LOWEST]):
            setting = _at(seer, sparsity)
            shortest = setting.context.min()
            setting = setting[setting.context == shortest]
            nll = nll_at(seer[seer.context == longest], realised(setting))
            if shortest < longest and nll is not None and len(dense[shortest]) and len(dense[longest]):
                lengths = f"loss at {style.size(longest)} minus loss at {style.size(shortest)}"
                what = f"{model}, {realised(setting):.2f} skipped: {lengths}"
                losses = _nll(setting) - dense[shortest], nll - dense[longest]
                comparisons.append(_lower(what, *(loss.dropna() for loss in losses)))
    if not comparisons:
        raise _missing(run, "SeerAttention beside dense at two contexts", CONTEXTS)
    texts = ", ".join(every.corpus.unique())
    return Evidence(comparisons, pd.concat(parts), note=f"Text: {texts}.")


def gate_needs_rope(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C13: beyond the gates' training length, the gate with RoPE loses less than the one without."""
    rows = _documents(run, ROPE)
    gates = rows[rows.method == "seer"]
    training = run.table("training")
    comparisons, lengths = [], set()
    for job, of_job in gates.groupby(gates.gate.map(gate_sets.job_of)):
        trained_at = training[(training.kind == "distill") & (training.name == job)].context.max()
        without_rope = gate_sets.is_set(of_job.gate, WITHOUT_ROPE)
        with_rope = of_job[~without_rope & (of_job.gate == of_job.gate[~without_rope].min())]
        for context in sorted(context for context in of_job.context.unique() if context > trained_at):
            for sparsity in _sparsities(of_job):
                where = {"context": context, "sparsity_requested": sparsity}
                without, with_it = _nll(of_job[without_rope], **where), _nll(with_rope, **where)
                if len(without) and len(with_it):
                    lengths.add(style.size(trained_at))
                    comparisons.append(_lower(f"{style.size(context)}, {sparsity:.0%}", without, with_it))
    if not comparisons:
        raise _missing(run, "gates with and without RoPE beyond their training length", ROPE)
    return Evidence(comparisons, rows, note=f"With RoPE against without; trained at {', '.join(sorted(lengths))}.")


def best_pooling(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C14: the paper's pooling loses less than each of the other 48, at the highest sparsity.

    With this many comparisons on few documents some contradict by chance, so the note gives the place among all.
    """
    rows = _documents(run, POOLING)
    rows = rows[rows.context == rows.context.max()]
    highest = max(_sparsities(rows), default=math.nan)
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
    """Check C17: LongBench's score at 10% sparsity is at least that of dense, in every length bucket.

    Scores are paired by example, in percentage points, and averaged over tasks without weights. Every row of a
    prompt is sparse, as in version 1 of the authors' code; arms with dense last rows, as version 2 has them, do not
    count. Without LongBench, a run with a smaller model is judged on the tasks that it has, such as look-ups. They
    can support the claim or leave it undecided, and LongBench counts as missing.
    """
    rows = _marked(run)
    of_longbench = rows.task.isin(longbench.TASKS)
    comparisons, used = _tenth_against_dense(rows[of_longbench], in_place_of_longbench=False)
    if comparisons:
        missing = [bucket for bucket in LONGBENCH_BUCKETS if bucket not in set(used.bucket)]
        note = f"The tasks are {', '.join(sorted(used.task.unique()))}. {PROTOCOL}"
        return Evidence(comparisons, used, missing, note)
    comparisons, used = _tenth_against_dense(rows[~of_longbench], in_place_of_longbench=True)
    if not comparisons or _at_papers_scale(run, used):
        what = "LongBench scores of SeerAttention at 10% beside dense, with every row of the prompt sparse"
        raise MissingRows("tasks", what, folder=run.folder)
    note = f"The tasks in place of LongBench are {', '.join(sorted(used.task.unique()))}. Every row is sparse."
    return Evidence(comparisons, used, ["LongBench"], note)


def _marked(run: Run) -> pd.DataFrame:
    """Return the rows of tasks that have a mark, with the column `points`, from 0 to 100."""
    rows = requests.rows(run, "tasks")
    rows = rows[rows.correct.notna() | rows.score.notna()]
    points = 100 * rows.score.astype(float).fillna(rows.correct.astype(float))
    return rows.assign(bucket=rows.bucket.astype(str), points=points)


def _tenth_against_dense(rows: pd.DataFrame, in_place_of_longbench: bool) -> tuple[list[Comparison], pd.DataFrame]:
    """Compare the paper's gate at 10% with dense in each length bucket; return the comparisons and their rows."""
    tenth = _at(rows[(rows.method == "seer") & gate_sets.is_set(rows.gate, PAPER_GATE)], 0.1)
    tenth = tenth[tenth.model.isin(tenth.model.head(1)) & tenth.gate.isin(tenth.gate.head(1))]
    comparisons, used = [], [tenth]
    for (experiment, bucket), sparse in tenth.groupby(["experiment", "bucket"], sort=False):
        dense = rows[(rows.method == "dense") & (rows.model == sparse.model.iloc[0])]
        dense = dense[(dense.experiment == experiment) & (dense.bucket == bucket)]
        dense_points, sparse_points = (part.set_index(["task", "example"]).points for part in (dense, sparse))
        gain = (sparse_points - dense_points).dropna()
        if len(gain):
            what = f"{experiment}, {bucket} tokens" if in_place_of_longbench else bucket
            means = bootstrap.mean_of_means([part.to_numpy() for _, part in gain.groupby("task")])
            comparisons.append(Comparison(what, means, 0.0, True, "points", ours=in_place_of_longbench))
            used.append(dense)
    return comparisons, pd.concat(used)
