"""Variations: which arms are another budget, another gate or another selection of blocks."""

import pytest
from synthetic_rows import DENSE, origin, perplexity, write_run

from seerbench.artefacts.paper_numbers import paper_values
from seerbench.report import checks_quality, quality_rows
from seerbench.report.evidence import Comparison
from seerbench.rows.store import Run, write_rows


def variations(run, context):
    """Return kind -> words of the variations of the gate long:v1 in a run."""
    rows = quality_rows.documents(run, "contexts")
    base = rows[(rows.gate == "long:v1") & (rows.method == "seer") & (rows.context == context)]

    def compare(words, variant):
        return Comparison(words, (variant.nll.mean(),) * 3, 0.0, False, "nats")

    found = quality_rows.gate_variations(run, base, compare)
    return {kind: [comparison.what for comparison in comparisons] for kind, comparisons in found.items()}


def test_budgets_gates_and_selections_are_told_apart(tmp_path):
    run = Run(write_run(tmp_path))
    assert variations(run, 1024) == {
        quality_rows.TRAINING: ["0.002M", "0.008M"],
        quality_rows.GATES: ["block128:v1"],  # neither the control nor the budgets
    }
    assert variations(run, 2048) == {}  # `gates` has other documents


def test_one_budget_is_no_variation_and_a_rule_of_selection_is(tmp_path):
    run = origin("perplexity")
    cells = [("seer", "long:v1", "post", 0.9, 0.3), ("seer+layer", "long:v1", "post", 0.9, 0.2)]
    for experiment, of_experiment in (("contexts", cells[:1]), ("gates", cells)):
        rows = perplexity(run["run_id"], experiment, [DENSE, *of_experiment], (1024,))
        write_rows(tmp_path / "perplexity" / f"{experiment}.parquet", "perplexity", rows, run)
    found = variations(Run(write_budget(tmp_path, "long")), 1024)
    assert found == {quality_rows.SELECTION: ["SeerAttention, one threshold per layer (long:v1)"]}


def write_budget(folder, job):
    """Write the training of one gate job and return the folder."""
    run = origin("distill")
    row = {"run_id": run["run_id"], "name": job, "kind": "distill", "recipe": "v1", "step": 9, "tokens": 900}
    row |= {"sparsity_requested": None, "context": 512, "lm_loss": None, "gate_loss": 1.0, "learning_rate": 0.1}
    write_rows(folder / "training" / f"distill-{job}.parquet", "training", [row], run)
    return folder


def test_a_loss_that_is_too_high_is_shown_at_each_budget(tmp_path):
    """At 50% `long` loses 0.125 nats, `quarter`, with fewer tokens, 0.25: the claim is about `long`."""
    run = origin("perplexity")
    gates = [("seer", "long:v1", "post", 0.5, 1.0), ("seer", "quarter:v1", "post", 0.5, 2.0)]
    for experiment, cells in (("contexts", gates[:1]), ("gates", gates)):
        rows = perplexity(run["run_id"], experiment, [DENSE, *cells], (8192,))
        write_rows(tmp_path / "perplexity" / f"{experiment}.parquet", "perplexity", rows, run)
    for job in ("long", "quarter"):
        write_budget(tmp_path, job)
    evidence = checks_quality.post_half(Run(tmp_path), paper_values())
    (judged,) = evidence.comparisons
    assert judged.interval[0] == pytest.approx(0.125, abs=0.01)
    losses = [comparison.interval[0] for comparison in evidence.varied[quality_rows.TRAINING]]
    assert sorted(losses) == pytest.approx([0.125, 0.25], abs=0.01)


def test_joint_training_is_shown_beside_gates_trained_afterwards_and_at_other_lengths(tmp_path):
    run = origin("perplexity yarn")
    cells = [("dense", None, "yarn", None, 0.0)]
    cells += [("seer", "post:v1", recipe, 0.5, loss) for recipe, loss in (("post", 0.4), ("joint", 0.2))]
    rows = perplexity(run["run_id"], "yarn", cells, (8192, 32768))
    write_rows(tmp_path / "perplexity" / "yarn.parquet", "perplexity", rows, run)
    math = [row | {"experiment": "yarn-math", "corpus": "math"} for row in rows]
    write_rows(tmp_path / "perplexity" / "yarn-math.parquet", "perplexity", math, run)
    varied = checks_quality.joint_half(Run(tmp_path), paper_values()).varied
    found = {kind: [comparison.what for comparison in comparisons] for kind, comparisons in varied.items()}
    assert found == {
        "gates trained after YaRN": ["post at 50%"],
        quality_rows.CONTEXT: ["8k"],
        quality_rows.TEXT: ["math"],
    }
    (post,) = varied["gates trained after YaRN"]
    assert post.interval[0] == pytest.approx(0.4 / 8, abs=0.005)
