"""Claims: each sentence of the paper with a number or an ordering in it, judged from measured rows.

A check turns a run's rows into parts: numbers with their 95% intervals, each with the side of a bound on
which the paper puts it. The rules:

- reproduced: every interval lies wholly on the paper's side, and nothing that the sentence speaks of is
  missing. not reproduced: one lies wholly on the other side (contradicted) or across the bound
  (undecided). not testable here: rows are missing.
- Sentences about time stand on rows of a GPU at the paper's contexts, against FlashAttention-2; those
  about quality on any model, at that run's contexts: the label says how large it was.
- Of several runs that can judge a claim, the one whose evidence reaches the longest context counts, then
  one that is not at small scale, then the latest: a GPU run takes the place of a small one by itself.

`CLAIMS.md` is `page()` of the published runs; `seerbench check claims` compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from seerbench import statistics
from seerbench.artefacts import sources, style, summaries
from seerbench.artefacts.fig10 import PAPER_BEST
from seerbench.config import PAPER_GATE
from seerbench.results import ROOT, ResultsError, Run
from seerbench.statistics import Interval

PAPER = ROOT / "results" / "paper"
PUBLISHED = ROOT / "results" / "published"
REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE = "reproduced", "not reproduced", "not testable here"

SMALL = "small scale"  # how the scale of a preset begins whose models are trained here
PAPER_BLOCK = 64
GATE_SHARE = 0.03  # C11: "1-3% at 32k"
# C12 says "same" and "near-equal" without a number; Figure 8 prints none. Within a tenth counts as that.
SAME = 1.1
TTFT_CONTEXTS = (8192, 16384, 32768, 65536, 131072)  # Table 4
TABLE_1_LONGEST = 65536  # C7 and C8 stop there; C9 is about what lies beyond


@dataclass(frozen=True)
class Part:
    """One number with its interval, and the bound that it must be at least (`above`) or at most."""

    what: str
    interval: Interval
    bound: float
    above: bool
    unit: str

    @property
    def holds(self) -> bool:
        """Whether the whole interval is on the paper's side. False without an interval."""
        return self.interval[1] >= self.bound if self.above else self.interval[2] <= self.bound

    @property
    def contradicts(self) -> bool:
        """Whether the whole interval is on the other side."""
        return self.interval[2] < self.bound if self.above else self.interval[1] > self.bound

    @property
    def needs(self) -> str:
        """The bound in words."""
        return f"{'at least' if self.above else 'at most'} {_number(self.bound, self.unit)}"

    def __str__(self) -> str:
        estimate, low, high = self.interval
        between = "" if math.isnan(low) else f" [{_number(low)}, {_number(high)}]"
        return f"{self.what}: {_number(estimate, self.unit)}{between}"


def _number(value: float, unit: str = "") -> str:
    digits = "0" if value == 0 else f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}"
    return digits + {"": "", "x": "x", "%": "%"}.get(unit, f" {unit}")


@dataclass(frozen=True)
class Evidence:
    """What a check found in a run: its parts, the rows that they stand on, what the sentence asks beyond them."""

    parts: Sequence[Part]
    rows: pd.DataFrame
    missing: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """One claim, judged. `finding` and `label` are empty where nothing was measured."""

    id: str
    claim: str
    where: str
    scope: str
    verdict: str
    finding: str
    label: str
    check: str
    scale: str = ""  # the first words of the run's scale: "small scale"
    commands: Sequence[str] = ()
    minutes: float = 0.0
    parts: Sequence[Part] = field(default=(), repr=False)

    @property
    def shown(self) -> str:
        """The verdict with the scale that it was reached at."""
        return f"{self.verdict} ({self.scale})" if self.scale else self.verdict


Check = Callable[[Run, pd.DataFrame], Evidence]


# Time


def _gpu_timings(run: Run, sweep: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(cells, samples) of a sweep with the paper's blocks, if a GPU measured it.

    `dense` on a GPU is PyTorch's FlashAttention-2 kernel (baselines/dense.py) and is called "fa2" here.
    """
    cells, samples = sources.timed(run, sweep)
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
        base = next((ms["fa2", name] for name in (stage, *summaries.DENSE_STAGES) if ("fa2", name) in ms), None)
        if base is not None:
            faster = statistics.paired_speedup(base, ms[method, stage])
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
        share = statistics.paired_speedup(stages["plan"], stages["total"])
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
    for line in summaries.speedups(cells, samples, "attend").itertuples():
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
        faster = statistics.paired_speedup(
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


# Quality: differences in nats a token, document by document. A perplexity that is x% higher is ln(1 + x%) nats.


def _documents(run: Run, experiment: str) -> pd.DataFrame:
    rows = sources.experiment(run, "perplexity", experiment, "perplexity")
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
    loss = statistics.paired_delta(dense, joint)
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
    return Part(what, statistics.paired_delta(other, mine), 0.0, False, "nats")


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
            loss = statistics.paired_delta(other, mine)
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
            parts.append(Part(bucket, statistics.mean_of_means(tasks), 0.0, True, "points"))
    if not parts:
        raise ResultsError("SeerAttention at 10% beside dense among the tasks")
    said = f"Tasks here: {', '.join(sorted(rows.task.unique()))}"
    return Evidence(parts, rows, note=f"{said}; not LongBench." if here.empty else f"{said}.")


CHECKS: dict[str, Check] = {
    "C1": kernel_speedup,
    "C2": attention_speedup,
    "C3": joint_half,
    "C4": joint_most,
    "C5": joint_beats_post,
    "C6": post_half,
    "C7": below_moa,
    "C8": below_minference,
    "C9": minference_at_128k,
    "C10": longer_is_sparser,
    "C11": gate_share,
    "C12": training_kernel,
    "C13": gate_needs_rope,
    "C14": best_pooling,
    "C15": first_token_dense,
    "C16": first_token_minference,
    "C17": tasks_at_or_above,
}


# Verdicts


def paper_claims(folder: Path | str = PAPER) -> pd.DataFrame:
    """The sentences: `<folder>/claims.csv`. ResultsError where it and CHECKS do not name the same ones."""
    claims = pd.read_csv(Path(folder) / "claims.csv", dtype=str, keep_default_na=False)
    if list(claims.id) != list(CHECKS):
        raise ResultsError(
            f"{folder}/claims.csv has the claims {', '.join(claims.id)}; checks: {', '.join(CHECKS)}"
        )
    return claims


def judge(runs: Iterable[Run], folder: Path | str = PAPER) -> list[Verdict]:
    """A verdict a claim, each from the best evidence that the runs have (the rule stands above)."""
    paper, runs = sources.paper_values(folder), list(runs)
    return [_judge(claim, runs, paper) for claim in paper_claims(folder).itertuples()]


def _judge(claim, runs: Sequence[Run], paper: pd.DataFrame) -> Verdict:
    found, lacking = [], []
    for run in runs:
        try:
            evidence = CHECKS[claim.id](run, paper)
        except ResultsError as error:
            lacking.append(str(error).removeprefix(f"{run.folder} has no ").split("; measure")[0])
        else:
            steps = run.table("runs")
            steps = steps[steps.run_id.isin(evidence.rows.run_id.unique())]
            large = not steps.scale.str.startswith(SMALL).any()
            rank = evidence.rows.context.max(), large, steps.started.max(), len(found)
            found.append((rank, run, evidence, steps))
    check = CHECKS[claim.id]
    about = {"id": claim.id, "claim": claim.claim, "where": claim.where, "scope": claim.scope}
    about["check"] = f"seerbench/claims.py, {check.__name__}"
    if not found:
        reasons = "; ".join(dict.fromkeys(lacking)) or "any run"
        return Verdict(**about, verdict=NOT_TESTABLE, finding=f"missing: {reasons}.", label="")
    _, run, evidence, steps = max(found, key=lambda one: one[0])
    verdict, why = decide(evidence)
    return Verdict(
        **about,
        verdict=verdict,
        finding=" ".join(text for text in (why, _shown(evidence.parts), evidence.note) if text),
        label=sources.label(run, evidence.rows).removeprefix("measured: "),
        scale=", ".join(dict.fromkeys(text.split(":")[0] for text in steps.scale)),
        commands=list(dict.fromkeys(steps.command)),
        minutes=steps.wall_s.sum() / 60,
        parts=evidence.parts,
    )


def decide(evidence: Evidence) -> tuple[str, str]:
    """(verdict, why) from the parts, by the rules at the top of this file."""
    parts = evidence.parts
    against = sum(part.contradicts for part in parts)
    open_ones = sum(not part.holds and not part.contradicts for part in parts)
    missing = f"missing: {', '.join(evidence.missing)}." if evidence.missing else ""
    if against:
        return NOT_REPRODUCED, f"Contradicted by {against} of {len(parts)} comparisons. {missing}".strip()
    if open_ones:
        return NOT_REPRODUCED, f"Undecided in {open_ones} of {len(parts)} comparisons. {missing}".strip()
    return (NOT_TESTABLE, f"{missing} What there is holds.") if missing else (REPRODUCED, "")


def _shown(parts: Sequence[Part], most: int = 6) -> str:
    """The parts in words, those against the claim first where they are too many to list, and their bounds."""
    worst = sorted(parts, key=lambda part: (part.contradicts, not part.holds), reverse=True)
    shown = list(parts) if len(parts) <= most else worst[:most]
    needs = list(dict.fromkeys(part.needs for part in shown))
    if len(needs) == 1:
        said = "; ".join(map(str, shown)) + (f"; and {len(parts) - most} more" if len(parts) > most else "")
        return f"{said}. Needed: {needs[0]}."
    return "; ".join(f"{part} (needed: {part.needs})" for part in shown) + "."


# The paper against itself


def oddities(folder: Path | str = PAPER) -> list[str]:
    """What does not fit together in the paper's own numbers, with the arithmetic."""
    paper = sources.paper_values(folder)
    return [*_misprinted_time(paper), *_two_sparsities(paper), *_algorithm_1()]


def _misprinted_time(paper: pd.DataFrame) -> list[str]:
    table = paper[(paper.artefact == "table4") & paper.value.notna()]
    dense = table[table.method == "dense"].assign(length=lambda rows: rows.context.astype(float) / 1024)
    rest = dense[dense.context != "65536"]
    # Linear layers grow with the length, attention with its square: least squares on the relative error.
    terms = np.stack([rest.length, rest.length**2], axis=1)
    (linear, square), *_ = np.linalg.lstsq(terms / rest.value.to_numpy()[:, None], np.ones(len(rest)))
    miss = float(np.abs(terms @ (linear, square) / rest.value - 1).max())
    expected = linear * 64 + square * 64**2
    said = dense.value[dense.context == "65536"].item()
    seer = table.value[(table.method == "seer") & (table.context == "65536")].item()
    return [
        f"Table 4, FlashAttention-2 at 64k: {said} s is printed. {linear:.4f} L + {square:.6f} L^2 (L in thousands "
        f"of tokens) meets the other {len(rest)} lengths within {miss:.0%} and gives {expected:.2f} s, "
        f"{expected - said:+.2f} s: one digit. The speed-up there is {said / seer:.2f}x as printed and "
        f"{expected / seer:.2f}x by the fit."
    ]


def _two_sparsities(paper: pd.DataFrame) -> list[str]:
    own = paper[(paper.method == "minference") & paper.artefact.isin(["table1", "table4"])]
    sparsity = own.pivot(index="context", columns="artefact", values="sparsity")
    sparsity = sparsity.loc[sorted(sparsity.index, key=int)]
    pairs = [
        f"{style.size(int(context))}: {line.table1:.2f} and {line.table4:.2f}"
        for context, line in sparsity.iterrows()
        if line.table1 != line.table4
    ]
    return [
        f"MInference at one length has two sparsities, in Table 1 and in Table 4 ({'; '.join(pairs)}): its loss "
        "and its time to first token are not those of one setting."
    ]


def _algorithm_1() -> list[str]:
    """Algorithm 1 on one query row and two tiles of one key: scores 0 and 2, values 1 and 0."""
    scores, values = (0.0, 2.0), (1.0, 0.0)
    top = max(scores)
    true_sum = sum(math.exp(score - top) for score in scores)
    printed_sum = math.exp(scores[0] - scores[0]) + math.exp(scores[1] - top)
    rescale = math.exp(scores[0] - top)
    true_out = rescale * values[0] + values[1]
    printed_out = values[0] / rescale + values[1]
    true_max, printed_max = math.exp(scores[0] - top) / true_sum, math.exp(scores[0] * top) / true_sum
    example = "one query, two tiles of one key, scores 0 and 2, values 1 and 0"
    return [
        f"Algorithm 1, line 14, as printed adds the old row sum without the factor exp(m(j-1) - m(j)): {example} "
        f"give {printed_sum:.3f} for exp(-2) + exp(0) = {true_sum:.3f}.",
        f"Algorithm 1, line 15, inverts the factor that rescales the output: the same example gives "
        f"{printed_out:.3f} for exp(-2) x 1 + 1 x 0 = {true_out:.3f} before the division by the row sum.",
        f"Algorithm 1, line 18, lost the minus of exp(r - m): the first tile's share would be {printed_max:.3f} "
        f"for {true_max:.3f}.",
    ]


# The page


def published_runs(folder: Path | str = PUBLISHED) -> list[Run]:
    """The runs below results/published, by name."""
    return [Run(path) for path in sorted(Path(folder).glob("*")) if path.is_dir()]


def page(runs: Sequence[Run], folder: Path | str = PAPER) -> str:
    """CLAIMS.md: every verdict in a table, then what the paper says against itself."""
    verdicts = judge(runs, folder)
    counts = ", ".join(
        f"{sum(one.verdict == kind for one in verdicts)} {kind}"
        for kind in (REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE)
    )
    head = (
        "# Claims of the paper\n\n"
        "Written by `seerbench check claims --write` from the runs in `results/published` "
        f"({', '.join(run.folder.name for run in runs) or 'none yet'}); `seerbench check claims` fails where this "
        f"page and the rows disagree. {len(verdicts)} claims: {counts}.\n\n"
        "Reproduced: every 95% interval lies on the paper's side and nothing that the sentence speaks of is "
        "missing. Not reproduced: one lies on the other side (contradicted) or across the bound (undecided). "
        "Sentences about time are judged on a GPU at the paper's lengths, those about quality on the model and "
        "lengths that the evidence names: a verdict at small scale says nothing about an 8B model. Differences are "
        "nats a token on the same documents; minutes are the wall time of the steps that measured the rows.\n\n"
    )
    lines = ["| claim | verdict | measured | evidence | command, minutes | check |", "|---|---|---|---|---|---|"]
    for one in verdicts:
        ran = "<br>".join(f"`{command}`" for command in one.commands)
        cost = f"{ran}, {one.minutes:.1f}" if ran else "-"
        claim = f"**{one.id}** {one.claim} ({'; '.join(text for text in (one.where, one.scope) if text)})"
        lines.append(
            f"| {claim} | {one.shown} | {one.finding} | {one.label or '-'} | {cost} | `{one.check}` |".replace(
                "\n", " "
            )
        )
    against = "".join(f"- {text}\n" for text in oddities(folder))
    return head + "\n".join(lines) + "\n\n## The paper against itself\n\n" + against
