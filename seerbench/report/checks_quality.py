"""Checks of the claims about quality: C3 to C10, C13, C14 and C17.

Losses are compared on the same documents, in nats per token. A claim that names lengths is judged at those of them
that the run has. A run with small models that has none of them is judged at its own lengths, in place of the
paper's, as its model is in place of the paper's. Each check raises MissingRows if the run lacks its rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from seerbench.artefacts import budget, colors, frames, gate_sets, style
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
from seerbench.report.quality_rows import (
    CONTEXT,
    GATES,
    SPARSITY,
    TEXT,
    at_context,
    at_papers_scale,
    at_sparsity,
    contexts_to_judge,
    documents,
    gate_variations,
    loss_of_perplexities,
    lower,
    measured_rows,
    missing_rows,
    nll_where,
    paper_gate,
    sparsities,
    without_gaps,
)
from seerbench.rows import bootstrap, requests
from seerbench.rows.equal_sparsity import nll_at, realised, settings
from seerbench.rows.gate_ref import PAPER_GATE, UNTRAINED, WITHOUT_ROPE
from seerbench.rows.store import Run

POOLINGS = 49  # Figure 10 compares this many.
# Gate sets that differ from the paper's gate in the pooling alone, in the gate jobs of budget.JOBS.
POOLED_OTHERWISE = ("qmax", "qall")
# How C17 is measured: as version 1 of the authors' code has it, which is the one of Table 2.
PROTOCOL = "Every row of the prompt is sparse; answers are decoded with dense attention."
# The experiments that the claims are about. Those on the paper's second kind of text, mathematics, end in "-math".
CONTEXTS, CONTEXTS_MATH, YARN, ROPE, POOLING = "contexts", "contexts-math", "yarn", "rope", "pooling"


def _printed_loss(paper: pd.DataFrame, sparsity: float, recipe: str) -> tuple[float, float]:
    """Return the loss that Table 3 prints on PG19 in nats per token over its dense YaRN model, and its rounding."""
    rows = paper[(paper.artefact == "table3") & (paper.dataset == "PG19")]
    dense = rows.value[rows.method == "dense"].item()
    return loss_of_perplexities(
        dense, rows.value[(rows.recipe == recipe) & np.isclose(rows.sparsity, sparsity)].item()
    )


def _joint_loss(run: Run, paper: pd.DataFrame, sparsity: float) -> Evidence:
    """Compare the loss of joint fine-tuning at one sparsity with the loss that Table 3 prints."""
    every = frames.as_in_paper(documents(run, YARN))
    _, missing = contexts_to_judge(run, every, (TABLE_3_CONTEXT,))
    rows = at_context(every, TABLE_3_CONTEXT)
    bound, rounding = _printed_loss(paper, sparsity, "joint")

    def compare(what: str, rows: pd.DataFrame, recipe: str = "joint") -> Comparison | None:
        dense, sparse = nll_where(rows, recipe="yarn"), nll_where(rows, recipe=recipe, sparsity_requested=sparsity)
        if dense.empty or sparse.empty:
            return None
        return Comparison(what, bootstrap.paired_delta(dense, sparse), bound, False, "nats", rounding)

    judged = compare(f"joint at {sparsity:.0%} against dense YaRN, {style.size(rows.context.max())}", rows)
    if judged is None:
        raise missing_rows(run, f"dense YaRN and joint fine-tuning at {sparsity:.0%}", YARN)
    texts = frames.as_in_paper(measured_rows(frames.experiments(run, "perplexity", YARN, "perplexity")))
    texts = at_context(texts[~texts.corpus.isin(rows.corpus)], TABLE_3_CONTEXT)
    others = every[~every.context.isin(rows.context)]
    varied = {
        "gates trained after YaRN": [compare(f"post at {sparsity:.0%}", rows, "post")],
        CONTEXT: [compare(style.size(context), part) for context, part in others.groupby("context")],
        TEXT: [compare(str(corpus), part) for corpus, part in texts.groupby("corpus")],
    }
    return Evidence([judged], rows, missing, varied=without_gaps(varied))


def joint_half(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C3: the loss of joint fine-tuning at 50% is at most the paper's."""
    return _joint_loss(run, paper, 0.5)


def joint_most(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C4: the loss of joint fine-tuning at 90% is at most the paper's."""
    return _joint_loss(run, paper, 0.9)


def joint_beats_post(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C5: joint fine-tuning loses less than gates trained afterwards, at every sparsity, on both texts."""
    every = measured_rows(frames.as_in_paper(frames.experiments(run, "perplexity", YARN, "perplexity")))
    parts, comparisons, others = [], [], []
    for corpus, of_corpus in every.groupby("corpus", sort=False):
        rows = at_context(of_corpus, TABLE_3_CONTEXT)
        parts.append(rows)
        comparisons += _joint_against_post(f"{corpus}, joint against post", rows)
        for context, part in of_corpus[~of_corpus.context.isin(rows.context)].groupby("context"):
            others += _joint_against_post(f"{corpus}, {style.size(context)}", part)
    if not comparisons:
        raise missing_rows(run, "joint and post rows at one sparsity", YARN)
    _, missing = contexts_to_judge(run, every, (TABLE_3_CONTEXT,))
    one_text = ["a second text beside " + str(every.corpus.iloc[0])] if len(parts) == 1 else []
    varied = without_gaps({CONTEXT: others})
    return Evidence(comparisons, pd.concat(parts), [*missing, *one_text], varied=varied)


def _joint_against_post(words: str, rows: pd.DataFrame) -> list[Comparison]:
    """Compare joint fine-tuning with gates trained afterwards at each sparsity that both have."""
    comparisons = []
    for sparsity in sparsities(rows[rows.recipe == "joint"]):
        post = nll_where(rows, recipe="post", sparsity_requested=sparsity)
        joint = nll_where(rows, recipe="joint", sparsity_requested=sparsity)
        if len(post):
            comparisons.append(lower(f"{words} at {sparsity:.0%}", post, joint))
    return comparisons


def post_half(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C6: the loss at 50% is at most the largest of Table 1's from 8k to 64k, at each of these contexts."""
    rows, seer = paper_gate(run, documents(run, CONTEXTS))
    printed = paper[(paper.artefact == "table1") & paper.context.isin(map(str, TABLE_1_COMPARED))]
    dense = printed[printed.method == "dense"].set_index("context").value
    half = printed[(printed.method == "seer") & np.isclose(printed.sparsity, 0.5)].set_index("context").value
    bound, rounding = max(loss_of_perplexities(dense[context], half[context]) for context in half.index)

    def loss(what: str, base: pd.Series, sparse: pd.Series | None) -> Comparison | None:
        if sparse is None or sparse.empty or base.empty:
            return None
        return Comparison(what, bootstrap.paired_delta(base, sparse), bound, False, "nats", rounding)

    def at_length(context: int) -> Comparison | None:
        base = nll_where(rows, context=context, method="dense")
        return loss(style.size(context), base, nll_where(seer, context=context, sparsity_requested=0.5))

    contexts, missing = contexts_to_judge(run, seer, TABLE_1_COMPARED)
    comparisons = [comparison for comparison in map(at_length, contexts) if comparison is not None]
    if not comparisons:
        raise missing_rows(run, "SeerAttention at 50% beside dense", CONTEXTS)
    ours = seer[seer.context == contexts[-1]]
    base = nll_where(rows, context=contexts[-1], method="dense")
    skipped = realised(at_sparsity(ours, 0.5))
    varied = gate_variations(run, ours, lambda what, variant: loss(what, base, nll_at(variant, skipped)))
    varied |= without_gaps({CONTEXT: [at_length(context) for context in set(seer.context) - set(contexts)]})
    return Evidence(comparisons, rows[rows.context.isin(contexts)], missing, varied=varied)


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
    rows, seer = paper_gate(run, measured_rows(every))
    others = every[(every.method == method) & (every.model == seer.model.iloc[0])]
    others = others.assign(document=others.corpus + "/" + others.document)
    contexts, missing = contexts_to_judge(run, seer, TABLE_1_COMPARED)

    def at_length(context: int) -> list[Comparison]:
        ours = seer[seer.context == context]
        chosen = settings(choose(others[others.context == context]))
        compared = [_at_equal_sparsity(style.size(context), other, ours) for other in chosen]
        return [comparison for comparison in compared if comparison is not None]

    comparisons = []
    for context in contexts:
        found = at_length(context)
        comparisons += found
        if not found:
            missing.append(f"{style.size(context)} ({_why_not(choose(others[others.context == context]))})")
    if not comparisons:
        what = f"SeerAttention and {colors.display(method)} at equal sparsity ({', '.join(missing)})"
        raise missing_rows(run, what, CONTEXTS)
    note = "Sparsities are realised ones; SeerAttention is interpolated between its measured ones."
    longest = contexts[-1]
    ours, plans = seer[seer.context == longest], settings(others[others.context == longest])
    varied = gate_variations(run, ours, lambda what, variant: _least_sparse(what, plans, variant))
    by_sparsity = [_at_equal_sparsity(style.size(longest), plan, ours) for plan in plans]
    shorter = [
        comparison for context in sorted(set(seer.context) - set(contexts)) for comparison in at_length(context)
    ]
    varied |= without_gaps({SPARSITY: [each for each in by_sparsity if each not in comparisons], CONTEXT: shorter})
    return Evidence(comparisons, rows[rows.context.isin(contexts)], missing, note, varied)


def _least_sparse(what: str, plans: Sequence[pd.DataFrame], ours: pd.DataFrame) -> Comparison | None:
    """Compare the first of `plans`, which ascend in sparsity, that is in the measured range of `ours`."""
    compared = (_at_equal_sparsity(what, plan, ours) for plan in plans)
    return next((comparison for comparison in compared if comparison is not None), None)


def _at_equal_sparsity(what: str, other: pd.DataFrame, ours: pd.DataFrame) -> Comparison | None:
    """Compare one setting of a method with `ours` at its realised sparsity; None outside our measured range."""
    nll = nll_at(ours, realised(other))
    return None if nll is None else lower(f"{what}, both {realised(other):.2f} skipped", nll_where(other), nll)


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
        lowest = rows.sparsity_requested == rows.sparsity_requested.min()
        return rows[rows.sparsity_requested.isna() | lowest]

    return _against(run, "moa", choose)


def below_minference(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C8: SeerAttention has a lower perplexity than MInference at equal sparsity.

    MInference is taken at its own sparsity, as in the paper, and at each requested one. A search for patterns may
    choose worse ones than the patterns that a requested sparsity scales, so its own sparsity alone would flatter
    SeerAttention.
    """
    return _against(run, "minference", lambda rows: rows)


def minference_at_128k(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C9: MInference has a lower perplexity than SeerAttention at 128k and 90%.

    MInference is taken at its own sparsity, as in the paper, or at 90% if that was not measured. SeerAttention is
    interpolated to its realised sparsity.
    """
    rows = documents(run, CONTEXTS)
    rows = rows[rows.context == TABLE_1_LAST]
    minference = rows[rows.method == "minference"]
    minference = _own(minference) if len(_own(minference)) else at_sparsity(minference, 0.9)
    if minference.empty:
        raise missing_rows(run, "SeerAttention and MInference at 128k and 90%", CONTEXTS)
    _, seer = paper_gate(run, rows)
    other = settings(minference)[-1]
    nll = nll_at(seer, realised(other))
    if nll is None:
        raise missing_rows(run, f"SeerAttention at 128k and MInference's {realised(other):.2f}", CONTEXTS)
    what = f"MInference against SeerAttention, both {realised(other):.2f} skipped"
    return Evidence([lower(what, nll, nll_where(other))], rows)


def longer_is_sparser(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C10: at equal sparsity the loss against dense is lower at the longest context than at the shortest.

    Each sparsity from Table 1's lowest on is taken at the shortest context that has it. The loss at the longest one
    is interpolated to that realised sparsity, which can only make it larger.

    Figure 4 has mathematics, with two models; a run without that text is judged on its own.
    """
    names = requests.rows(run, "perplexity").experiment.unique()
    math_parts = [name for name in names if name == CONTEXTS_MATH or name.startswith(f"{CONTEXTS_MATH}-")]
    every = pd.concat([documents(run, name) for name in math_parts or [CONTEXTS]])
    comparisons, parts, gates = [], [], []
    for model, rows in every.groupby("model", sort=False):
        if not gate_sets.is_set(rows.gate, PAPER_GATE).any():
            continue
        rows, seer = paper_gate(run, rows)
        parts.append(rows)
        comparisons += _longest_minus_shortest(str(model), rows, seer)
        others = rows[(rows.method == "seer") & ~rows.gate.isin(seer.gate)]
        for gate, other in others[~gate_sets.is_set(others.gate, UNTRAINED)].groupby("gate"):
            gates += _longest_minus_shortest(f"{model}, {gate}", rows, other)
    if not comparisons:
        raise missing_rows(run, "SeerAttention beside dense at two contexts", CONTEXTS)
    used = pd.concat(parts)
    varied = {GATES: gates, TEXT: []}
    if math_parts and CONTEXTS in names:
        rows, seer = paper_gate(run, documents(run, CONTEXTS))
        varied[TEXT] = _longest_minus_shortest(", ".join(rows.corpus.unique()), rows, seer)
    texts = ", ".join(every.corpus.unique())
    return Evidence(comparisons, used, note=f"Text: {texts}.", varied=without_gaps(varied))


def _longest_minus_shortest(words: str, rows: pd.DataFrame, seer: pd.DataFrame) -> list[Comparison]:
    """Compare the loss of one gate (`seer`, among the `rows` of its model) at the longest and shortest context."""
    comparisons = []
    longest = seer.context.max()
    dense = {context: nll_where(rows, context=context, method="dense") for context in seer.context.unique()}
    for sparsity in sparsities(seer[seer.sparsity_requested >= TABLE_1_LOWEST]):
        setting = at_sparsity(seer, sparsity)
        shortest = setting.context.min()
        setting = setting[setting.context == shortest]
        nll = nll_at(seer[seer.context == longest], realised(setting))
        if shortest < longest and nll is not None and len(dense[shortest]) and len(dense[longest]):
            lengths = f"loss at {style.size(longest)} minus loss at {style.size(shortest)}"
            what = f"{words}, {realised(setting):.2f} skipped: {lengths}"
            losses = nll_where(setting) - dense[shortest], nll - dense[longest]
            comparisons.append(lower(what, *(loss.dropna() for loss in losses)))
    return comparisons


def gate_needs_rope(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C13: beyond the gates' training length, the gate with RoPE loses less than the one without."""
    rows = documents(run, ROPE)
    gates = rows[rows.method == "seer"]
    training = run.table("training")
    beyond: list[Comparison] = []
    within: list[Comparison] = []
    lengths = set()
    for job, of_job in gates.groupby(gates.gate.map(gate_sets.job_of)):
        trained_at = training[(training.kind == "distill") & (training.name == job)].context.max()
        without_rope = gate_sets.is_set(of_job.gate, WITHOUT_ROPE)
        with_rope = of_job[~without_rope & (of_job.gate == of_job.gate[~without_rope].min())]
        for context in sorted(of_job.context.unique()):
            for sparsity in sparsities(of_job):
                where = {"context": context, "sparsity_requested": sparsity}
                without, with_it = nll_where(of_job[without_rope], **where), nll_where(with_rope, **where)
                if len(without) and len(with_it):
                    comparison = lower(f"{style.size(context)}, {sparsity:.0%}", without, with_it)
                    (beyond if context > trained_at else within).append(comparison)
                    lengths.add(style.size(trained_at))
    if not beyond:
        raise missing_rows(run, "gates with and without RoPE beyond their training length", ROPE)
    note = f"With RoPE against without; trained at {', '.join(sorted(lengths))}.{_learned_from(run, gates.gate)}"
    return Evidence(beyond, rows, note=note, varied=without_gaps({"contexts up to the training length": within}))


def best_pooling(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C14: the paper's pooling loses less than each of the other 48, at the highest sparsity.

    With this many comparisons on few documents some contradict by chance, so the note gives the place among all.
    """
    rows = documents(run, POOLING)
    rows = rows[rows.context == rows.context.max()]
    of_sparsity = {
        sparsity: _against_best_pooling(at_sparsity(rows[rows.method == "seer"], sparsity))
        for sparsity in sparsities(rows)
    }
    highest = max(of_sparsity, default=math.nan)
    comparisons = of_sparsity.pop(highest, [])
    if not comparisons:
        raise missing_rows(run, f"{BEST_POOLING} beside other poolings", POOLING)
    better = sum(comparison.interval[0] > 0 for comparison in comparisons)
    others = POOLINGS - 1
    measured = len(comparisons)
    missing = [] if measured == others else [f"{others - measured} of the {others} other poolings"]
    count = rows.document.nunique()
    note = f"Place {better + 1} of {measured + 1} at {highest:.0%} by the mean over {count} documents."
    note += _learned_from(run, rows.gate.dropna())
    # Those that are against the claim, at the lower sparsities too.
    against = {comparison.what for comparison in comparisons if comparison.contradicts}
    varied: dict[str, list[Comparison]] = {
        f"the same poolings at {sparsity:.0%}": [each for each in found if each.what in against]
        for sparsity, found in of_sparsity.items()
    }
    varied[f"{PAPER_GATE} minus other poolings of the experiment gates"] = _longer_trained_poolings(
        run, rows, highest
    )
    return Evidence(comparisons, rows, missing, note, without_gaps(varied))


def _learned_from(run: Run, gates: pd.Series) -> str:
    """Return a sentence on the tokens that gates were trained on, which decides what a comparison of them tells."""
    tokens = budget.tokens_of(run)
    keys = [(str(gate_sets.job_of(gate)), str(gate_sets.set_of(gate))) for gate in gates.unique()]
    found = {tokens[key] for key in keys if key in tokens}
    return (
        f" Each gate learned from {' or '.join(f'{each / 1e6:.3g}M' for each in sorted(found))} tokens."
        if found
        else ""
    )


def _against_best_pooling(seer: pd.DataFrame) -> list[Comparison]:
    """Compare the paper's pooling with each other one among rows of one sparsity; empty without the paper's."""
    losses = {gate_sets.set_of(gate): nll_where(group) for gate, group in seer.groupby("gate")}
    best = losses.pop(BEST_POOLING, None)
    if best is None:
        return []
    return [lower(f"{BEST_POOLING} against {name}", other, best) for name, other in losses.items()]


def _longer_trained_poolings(run: Run, rows: pd.DataFrame, sparsity: float) -> list[Comparison]:
    """Compare the paper's pooling with the sets POOLED_OTHERWISE of a gate job, on the model and text of `rows`."""
    every = requests.rows(run, "perplexity")
    every = measured_rows(every[(every.experiment == "gates") & (every.method == "seer")])
    every = at_sparsity(every[every.model.isin(rows.model) & every.corpus.isin(rows.corpus)], sparsity)
    losses = {gate: nll_where(group) for gate, group in every.groupby("gate")}
    return [
        lower(f"{job}:{name} at {sparsity:.0%}", losses[f"{job}:{name}"], losses[f"{job}:{PAPER_GATE}"])
        for job in budget.JOBS
        for name in POOLED_OTHERWISE
        if {f"{job}:{name}", f"{job}:{PAPER_GATE}"} <= set(losses)
    ]


def tasks_at_or_above(run: Run, paper: pd.DataFrame) -> Evidence:
    """Check C17: LongBench's score at 10% sparsity is at least that of dense, in every length bucket.

    Scores are paired by example, in percentage points, and averaged over tasks without weights. Every row of a
    prompt is sparse, as in version 1 of the authors' code; arms with dense last rows, as version 2 has them, do not
    count. Without LongBench, a run with a smaller model is judged on the tasks that it has, such as look-ups. They
    can support the claim or leave it undecided, and LongBench counts as missing.
    """
    rows = _marked(run)
    of_longbench = rows.task.isin(longbench.TASKS)
    evidence = _tenth_against_dense(rows[of_longbench])
    if evidence.comparisons:
        missing = [bucket for bucket in LONGBENCH_BUCKETS if bucket not in set(evidence.rows.bucket)]
        note = f"The tasks are {', '.join(sorted(evidence.rows.task.unique()))}. {PROTOCOL}"
        return replace(evidence, missing=missing, note=note)
    evidence = _tenth_against_dense(rows[~of_longbench], in_place_of_longbench=True)
    if not evidence.comparisons or at_papers_scale(run, evidence.rows):
        what = "LongBench scores of SeerAttention at 10% beside dense, with every row of the prompt sparse"
        raise MissingRows("tasks", what, folder=run.folder)
    tasks = ", ".join(sorted(evidence.rows.task.unique()))
    note = f"The tasks in place of LongBench are {tasks}. Every row of the prompt is sparse."
    return replace(evidence, missing=["LongBench"], note=note)


def _marked(run: Run) -> pd.DataFrame:
    """Return the rows of tasks that have a mark, with the column `points`, from 0 to 100."""
    rows = requests.rows(run, "tasks")
    rows = rows[rows.correct.notna() | rows.score.notna()]
    points = 100 * rows.score.astype(float).fillna(rows.correct.astype(float))
    return rows.assign(bucket=rows.bucket.astype(str), points=points)


def _tenth_against_dense(rows: pd.DataFrame, in_place_of_longbench: bool = False) -> Evidence:
    """Compare the paper's gate at 10% with dense in each length bucket; its other arms are variations."""
    seer = rows[(rows.method.map(colors.base_of) == "seer") & ~gate_sets.is_set(rows.gate, UNTRAINED)]
    tenth = at_sparsity(seer[(seer.method == "seer") & gate_sets.is_set(seer.gate, PAPER_GATE)], 0.1)
    tenth = tenth[tenth.model.isin(tenth.model.head(1)) & tenth.gate.isin(tenth.gate.head(1))]
    comparisons, used, varied = [], [tenth], {}
    for (experiment, bucket), sparse in tenth.sort_values("context").groupby(["experiment", "bucket"], sort=False):
        here = (rows.experiment == experiment) & (rows.bucket == bucket) & rows.model.isin(tenth.model)
        dense = rows[here & (rows.method == "dense")]
        words = f"{experiment}, {bucket} tokens" if in_place_of_longbench else bucket
        if gain := _gain(words, dense, sparse, in_place_of_longbench):
            comparisons.append(gain)
            used.append(dense)
            others = seer[here[seer.index]].drop(sparse.index)
            varied = {f"other arms at their lowest sparsity ({words})": _lowest_gains(dense, others)}
    return Evidence(comparisons, pd.concat(used), varied=without_gaps(varied))


def _lowest_gains(dense: pd.DataFrame, arms: pd.DataFrame) -> list[Comparison | None]:
    """Compare each method and gate at its lowest requested sparsity with dense."""
    lowest = arms.groupby(["method", "gate"]).sparsity_requested.transform("min")
    groups = arms[arms.sparsity_requested == lowest].groupby(["method", "gate", "sparsity_requested"])
    return [
        _gain(f"{colors.display(method, gate)} at {sparsity:.0%}", dense, arm, ours=True)
        for (method, gate, sparsity), arm in groups
    ]


def _gain(words: str, dense: pd.DataFrame, sparse: pd.DataFrame, ours: bool) -> Comparison | None:
    """Compare the points of a sparse arm with those of dense, by example; None if they share no example."""
    dense_points, sparse_points = (part.set_index(["task", "example"]).points for part in (dense, sparse))
    gain = (sparse_points - dense_points).dropna()
    if gain.empty:
        return None
    means = bootstrap.mean_of_means([part.to_numpy() for _, part in gain.groupby("task")])
    return Comparison(words, means, 0.0, True, "points", ours=ours)
