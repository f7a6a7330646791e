"""Read the perplexity rows that claims about quality compare, and what is varied beside them.

A variation asks the question of a claim again with one thing changed: another training budget of the gate, another
gate, another way to select blocks, another text, context or sparsity. It decides nothing. It shows in which
direction the number moves, which is all that can be said about why a claim does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from seerbench.artefacts import budget, colors, frames, gate_sets, style
from seerbench.errors import MissingRows
from seerbench.report.evidence import Comparison
from seerbench.rows import bootstrap, requests
from seerbench.rows.gate_ref import PAPER_GATE, UNTRAINED, GateRef
from seerbench.rows.schema import SCALE_KINDS
from seerbench.rows.store import Run

HALF_A_DIGIT = 0.005  # The paper prints perplexities with two decimals.
RESOLUTION = HALF_A_DIGIT / 10  # in nats: half of the last decimal of a perplexity of 10, as in Table 1
# Kinds of variations, as pages call them. The first three are arms of the experiment `gates`.
TRAINING = "tokens that the gate was trained on (experiment gates)"
GATES = "other gates (experiments gates and contexts)"
SELECTION = "other ways to select blocks (experiment gates)"
TEXT, CONTEXT, SPARSITY = "another text", "other contexts", "other sparsities"
Compare = Callable[[str, pd.DataFrame], Comparison | None]


def measured_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the perplexity rows that were measured, with document names that are unique over corpora."""
    rows = rows[rows.status == "measured"]
    return rows.assign(document=rows.corpus + "/" + rows.document)


def documents(run: Run, experiment: str) -> pd.DataFrame:
    """Return the measured perplexity rows of an experiment."""
    return measured_rows(frames.experiment(run, "perplexity", experiment, "perplexity"))


def at_context(rows: pd.DataFrame, context: int) -> pd.DataFrame:
    """Return the rows at a context, or those at the longest one if there are none."""
    at_this = rows[rows.context == context]
    return at_this if len(at_this) else rows[rows.context == rows.context.max()]


def contexts_to_judge(run: Run, rows: pd.DataFrame, contexts: Sequence[int]) -> tuple[list[int], list[str]]:
    """Return (contexts to judge at, contexts that are missing in words) for a claim that names `contexts`.

    A run at the paper's scale lacks those that it did not measure. A smaller one is judged at those that it has,
    or at all of its own if it has none of them.
    """
    measured = sorted(int(context) for context in rows.context.unique())
    named = [context for context in measured if context in contexts]
    if not at_papers_scale(run, rows):
        return named or measured, []
    return named, [style.size(context) for context in contexts if context not in named]


def at_papers_scale(run: Run, rows: pd.DataFrame) -> bool:
    """Return whether all executions that measured the rows are at the paper's scale."""
    runs = run.table("runs")
    return set(runs.scale_kind[runs.run_id.isin(rows.run_id)]) == {SCALE_KINDS[-1]}


def missing_rows(run: Run, what: str, experiment: str) -> MissingRows:
    """Return the error for rows that a perplexity experiment lacks."""
    return MissingRows("perplexity", f"{what} in the experiment {experiment!r}", folder=run.folder)


def nll_where(rows: pd.DataFrame, **where: object) -> pd.Series:
    """Return the NLL by document of the rows whose columns have these values; empty if there are none."""
    for name, value in where.items():
        match = np.isclose(rows[name].astype(float), value) if isinstance(value, float) else rows[name] == value
        rows = rows[match]
    return rows.set_index("document").nll


def paper_gate(run: Run, rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return (all rows of a model, SeerAttention's among them) for the first gate job with the paper's gate set."""
    seer = rows[(rows.method == "seer") & gate_sets.is_set(rows.gate, PAPER_GATE)]
    if seer.empty:
        what = f"SeerAttention with the gate set {PAPER_GATE!r} among the perplexities"
        raise MissingRows("perplexity", what, folder=run.folder)
    of_model = rows[rows.model == seer.model.iloc[0]]
    return of_model, of_model[(of_model.method == "seer") & (of_model.gate == seer.gate.iloc[0])]


def sparsities(rows: pd.DataFrame) -> list[float]:
    """Return the requested sparsities of the rows, in ascending order."""
    return sorted(float(sparsity) for sparsity in rows.sparsity_requested.dropna().unique())


def at_sparsity(rows: pd.DataFrame, sparsity: float) -> pd.DataFrame:
    """Return the rows at a requested sparsity."""
    return rows[np.isclose(rows.sparsity_requested, sparsity)]


def lower(what: str, other: pd.Series, ours: pd.Series) -> Comparison:
    """Compare two losses by document: the claim is that `ours` is at most `other`."""
    return Comparison(what, bootstrap.paired_delta(other, ours), 0.0, False, "nats", RESOLUTION)


def loss_of_perplexities(dense: float, sparse: float) -> tuple[float, float]:
    """Return (loss in nats per token, by how much more it may be) of two perplexities printed with two decimals."""
    loss = math.log(sparse / dense)
    return loss, math.log((sparse + HALF_A_DIGIT) / (dense - HALF_A_DIGIT)) - loss


def gate_variations(run: Run, base: pd.DataFrame, compare: Compare) -> dict[str, list[Comparison]]:
    """Return kind of variation -> what `compare` finds for each other gate and each other way to select blocks.

    Args:
        run: the run.
        base: rows of SeerAttention with the paper's gate in one model, at one context.
        compare: called with words and the rows of a variant; returns None if it cannot be compared.
    """
    rows = requests.rows(run, "perplexity")
    rows = measured_rows(rows[rows.experiment.isin(["gates", "contexts"]) & rows.model.isin(base.model)])
    rows = rows[rows.corpus.isin(base.corpus) & rows.context.isin(base.context) & rows.gate.notna()]
    rows = rows[(rows.method.map(colors.base_of) == "seer") & ~gate_sets.is_set(rows.gate, UNTRAINED)]
    found: dict[str, list[tuple[float, str, pd.DataFrame]]] = {TRAINING: [], GATES: [], SELECTION: []}
    tokens = budget.tokens_of(run)
    for (method, gate), variant in rows.groupby(["method", "gate"]):
        reference = GateRef.parse(str(gate))
        if method != "seer":
            found[SELECTION].append((0, colors.display(str(method), str(gate)), variant))
        elif reference.set == PAPER_GATE and reference.job in budget.JOBS and (reference.job, PAPER_GATE) in tokens:
            seen = tokens[reference.job, PAPER_GATE]
            in_gates = variant[variant.experiment == "gates"]  # so that all budgets have the same sparsities
            found[TRAINING].append((seen, f"{seen / 1e6:.3g}M", in_gates))
        elif gate not in set(base.gate):
            found[GATES].append((0, str(gate), variant))
    if len(found[TRAINING]) == 1:
        found[TRAINING] = []  # nothing was varied
    compared = {
        kind: [compare(words, variant) for _, words, variant in sorted(variants, key=lambda each: each[:2])]
        for kind, variants in found.items()
    }
    return without_gaps(compared)


def without_gaps(compared: Mapping[str, Sequence[Comparison | None]]) -> dict[str, list[Comparison]]:
    """Return the variations without those that could not be compared, and without kinds that have none."""
    kept = {kind: [each for each in found if each is not None] for kind, found in compared.items()}
    return {kind: found for kind, found in kept.items() if found}
