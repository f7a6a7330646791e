"""Checks of quality: which sparsities and lengths are compared, and what a claim cannot be judged from."""

import pytest
from synthetic_rows import DENSE, longbench_rows, origin, perplexity, write_run

from seerbench.artefacts.paper_numbers import paper_values
from seerbench.errors import MissingRows
from seerbench.report import checks_quality
from seerbench.report.verdicts import CHECKS
from seerbench.rows.store import Run, write_rows

SEER = [("seer", "long:v1", "post", sparsity, 1.0) for sparsity in (0.4, 0.5, 0.7, 0.9)]


def write_perplexity(folder, experiment, cells, contexts, scale_kind="small", realised=None, **changes):
    """Write one experiment and return the run. realised: method -> realised sparsity; changes: columns."""
    run = origin(f"perplexity {experiment}", scale_kind=scale_kind)
    rows = perplexity(run["run_id"], experiment, cells, contexts)
    rows = [
        {**row, "sparsity_realised": (realised or {}).get(row["method"], row["sparsity_realised"]), **changes}
        for row in rows
    ]
    write_rows(folder / "perplexity" / f"{experiment}.parquet", "perplexity", rows, run)
    return Run(folder)


def rewritten(run, rows):
    """Write other perplexity rows into a run and return it."""
    origins = run.table("runs")
    origins = origins.astype(object).where(origins.notna(), None).to_dict("records")
    write_rows(run.folder / "perplexity" / "contexts.parquet", "perplexity", rows, origins)
    return Run(run.folder)


@pytest.mark.parametrize(
    ("realised", "loss"),
    [(0.88, 0.7**3 / 2 + 0.9**3 / 2), (0.8, 0.7**3), (0.804, 0.7**3), (0.74, None), (0.97, None)],
)
def test_minference_meets_the_gate_at_its_own_sparsity(tmp_path, realised, loss):
    """The gates realise 0.8 and 0.96; between them their loss is interpolated, and outside nothing is said."""
    cells = [DENSE, ("minference", "searched", "none", None, 0.0), *SEER[2:]]
    run = write_perplexity(tmp_path, "contexts", cells, (1024,), realised={"minference": realised})
    rows = run.table("perplexity")
    skipped = rows.sparsity_requested.map({0.7: 0.8, 0.9: 0.96}).fillna(rows.sparsity_realised)
    rows = rows.assign(sparsity_realised=skipped, sparsity_requested=rows.sparsity_requested.replace(0.7, 0.8))
    rows["sparsity_requested"] = rows.sparsity_requested.replace(0.9, 0.96)
    run = rewritten(run, rows)
    if loss is None:
        with pytest.raises(MissingRows, match=rf"{realised} skipped is outside SeerAttention's range"):
            checks_quality.below_minference(run, None)
        return
    (comparison,) = checks_quality.below_minference(run, None).comparisons
    assert f"both {realised:.2f} skipped" in comparison.what
    assert comparison.interval[0] == pytest.approx(loss, abs=0.01)
    assert comparison.contradicts  # MInference loses nothing here


def test_minference_counts_at_its_own_sparsity_and_at_requested_ones(tmp_path):
    own, requested = ("minference", "v2", "none", None, 0.0), ("minference", "v2", "none", 0.5, 9.0)
    run = write_perplexity(tmp_path, "contexts", [DENSE, requested, *SEER], (1024,))
    (comparison,) = checks_quality.below_minference(run, None).comparisons
    assert comparison.holds
    cells = [DENSE, own, requested, *SEER]
    run = write_perplexity(tmp_path, "contexts", cells, (1024,), realised={"minference": 0.49})
    comparisons = checks_quality.below_minference(run, None).comparisons
    assert sorted(comparison.contradicts for comparison in comparisons) == [False, True]


def test_moa_is_taken_where_the_paper_has_it(tmp_path):
    """At its own sparsity and at the lowest requested one; a refused plan is no reason to take a sparser one."""
    plans = [("moa", f"moa-{sparsity}", "none", sparsity, loss) for sparsity, loss in ((0.4, 9.0), (0.9, 0.0))]
    cells = [DENSE, *SEER, *plans, ("moa", "moa-kv", "none", None, 0.0)]
    run = write_perplexity(tmp_path, "contexts", cells, (1024,))
    (comparison,) = checks_quality.below_moa(run, None).comparisons
    assert "both 0.39 skipped" in comparison.what
    assert comparison.holds
    rows = run.table("perplexity")
    rows.loc[rows.gate == "moa-0.4", "sparsity_realised"] = 0.5
    with pytest.raises(MissingRows, match=r"skips 50\.0% where 40% was requested: more than 2 points above"):
        checks_quality.below_moa(rewritten(run, rows), None)


@pytest.mark.parametrize(
    ("scale", "contexts", "judged", "missing"),
    [
        ("small", (512, 1024), ["512", "1k"], []),  # a small model has none of the paper's lengths
        ("small", (2048, 8192), ["8k"], []),
        ("paper", (2048, 8192), ["8k"], ["16k", "32k", "64k"]),
        ("paper", (8192, 16384, 32768, 65536, 131072), ["8k", "16k", "32k", "64k"], []),
    ],
)
def test_a_claim_that_names_lengths_is_judged_at_them(tmp_path, scale, contexts, judged, missing):
    run = write_perplexity(tmp_path, "contexts", [DENSE, *SEER], contexts, scale)
    evidence = checks_quality.post_half(run, paper_values())
    assert [comparison.what for comparison in evidence.comparisons] == judged
    assert list(evidence.missing) == missing


def test_rows_at_the_papers_scale_but_other_lengths_judge_nothing(tmp_path):
    run = write_perplexity(tmp_path, "contexts", [DENSE, *SEER], (1024,), "paper")
    with pytest.raises(MissingRows):
        checks_quality.post_half(run, paper_values())


def test_joint_beats_post_on_both_texts(tmp_path):
    yarn = [("dense", None, "yarn", None, 0.0)]
    yarn += [("seer", "post:v1", "post", 0.5, 0.3), ("seer", "joint:v1", "joint", 0.5, 0.1)]
    one = checks_quality.joint_beats_post(write_perplexity(tmp_path, "yarn", yarn, (1024, 2048)), None)
    assert [comparison.what for comparison in one.comparisons] == ["stdlib, joint against post at 50%"]
    assert len(one.missing) == 1
    both = write_perplexity(tmp_path, "yarn-math", yarn, (2048,), corpus="math")
    evidence = checks_quality.joint_beats_post(both, None)
    assert [comparison.holds for comparison in evidence.comparisons] == [True, True]
    assert not evidence.missing


def test_longer_is_sparser_is_about_mathematics_and_every_model_there(tmp_path):
    write_perplexity(tmp_path, "contexts", [DENSE, *SEER], (512, 1024))
    write_perplexity(tmp_path, "contexts-math", [DENSE, *SEER], (512, 1024), corpus="math", model="llama")
    run = write_perplexity(tmp_path, "contexts-math-b", [DENSE, *SEER], (512, 1024), corpus="math", model="b")
    evidence = checks_quality.longer_is_sparser(run, None)
    assert {comparison.what.partition(",")[0] for comparison in evidence.comparisons} == {"llama", "b"}
    assert evidence.note == "Text: math."


def test_of_several_gates_with_the_papers_set_the_first_counts(tmp_path):
    other = [("seer", "longer:v1", "post", sparsity, 0.0) for sparsity in (0.4, 0.5)]
    run = write_perplexity(tmp_path, "contexts", [DENSE, *SEER, *other], (1024,))
    (comparison,) = checks_quality.post_half(run, paper_values()).comparisons
    assert comparison.contradicts  # that of long:v1, and not of longer:v1, which loses nothing


@pytest.mark.parametrize("sparsity", [None, 0.9])
def test_minference_at_128k_is_at_its_own_sparsity_or_at_90(tmp_path, sparsity):
    cells = [DENSE, ("minference", "v2", "none", sparsity, 0.0), *SEER]
    run = write_perplexity(tmp_path, "contexts", cells, (8192, 131072), realised={"minference": 0.89})
    (comparison,) = checks_quality.minference_at_128k(run, None).comparisons
    assert "both 0.89 skipped" in comparison.what
    assert comparison.holds


@pytest.mark.parametrize(("seer", "holds"), [(0.6, True), (0.4, False)])
def test_the_longbench_claim_is_about_every_bucket(tmp_path, seer, holds):
    run = origin("tasks longbench")
    write_rows(tmp_path / "tasks" / "longbench.parquet", "tasks", longbench_rows(run["run_id"], seer), run)
    evidence = checks_quality.tasks_at_or_above(Run(tmp_path), paper_values())
    assert [comparison.what for comparison in evidence.comparisons] == ["0-4k", "8k+"]
    assert [comparison.holds for comparison in evidence.comparisons] == [holds, holds]
    assert evidence.missing == ["4-8k"]


def test_look_ups_cannot_judge_longbench(tmp_path):
    with pytest.raises(MissingRows, match="LongBench"):
        checks_quality.tasks_at_or_above(Run(write_run(tmp_path)), paper_values())


@pytest.mark.parametrize("name", CHECKS)
def test_a_run_without_the_rows_is_told_apart_from_a_broken_one(tmp_path, name):
    """An empty run, and one in which every experiment has dense rows alone."""
    with pytest.raises(MissingRows):
        CHECKS[name](Run(tmp_path), paper_values())
    for experiment in ("contexts", "yarn", "rope", "pooling"):
        write_perplexity(tmp_path, experiment, [DENSE], (8192, 32768, 131072))
    with pytest.raises(MissingRows):
        CHECKS[name](Run(tmp_path), paper_values())


@pytest.mark.parametrize(("right", "decided"), [(1.0, True), (0.4, False)])
def test_other_tasks_support_the_claim_on_longbench_and_never_contradict_it(tmp_path, right, decided):
    """Of 20 look-ups dense answers 10; SeerAttention at 10% all or 8. At paper scale only LongBench counts."""
    for scale in ("real", "paper"):
        run = origin("tasks retrieval", scale_kind=scale)
        rows = [
            {
                "run_id": run["run_id"],
                "experiment": "retrieval",
                "model": "tiny",
                "corpus": "books",
                "task": "kv",
                "context": 8192,
                "bucket": "4096-8192",
                "method": method,
                "gate": gate,
                "sparsity_requested": sparsity,
                "sparsity_realised": sparsity or 0.0,
                "example": example,
                "correct": example < 20 * share,
            }
            for method, gate, sparsity, share in (("dense", None, None, 0.5), ("seer", "long:v1", 0.1, right))
            for example in range(20)
        ]
        write_rows(tmp_path / scale / "tasks" / "retrieval.parquet", "tasks", rows, run)
    evidence = checks_quality.tasks_at_or_above(Run(tmp_path / "real"), paper_values())
    (comparison,) = evidence.comparisons
    assert comparison.what == "retrieval, 4096-8192 tokens"
    assert comparison.interval[0] == pytest.approx(100 * (right - 0.5))
    assert (comparison.holds, comparison.contradicts) == (decided, False)
    assert evidence.missing == ["LongBench"]
    with pytest.raises(MissingRows, match="LongBench"):
        checks_quality.tasks_at_or_above(Run(tmp_path / "paper"), paper_values())


def test_claims_about_gates_say_how_long_these_learned(tmp_path):
    folder = write_run(tmp_path)
    run = origin("distill short")
    row = {
        "run_id": run["run_id"],
        "name": "short",
        "kind": "distill",
        "step": 9,
        "tokens": 32_800_000,
        "context": 512,
    }
    rows = [row | {"recipe": name, "gate_loss": 1.0, "learning_rate": 1e-3} for name in ("rope", "norope")]
    write_rows(folder / "training" / "distill-short.parquet", "training", rows, run)
    evidence = checks_quality.gate_needs_rope(Run(folder), paper_values())
    assert evidence.note.endswith("Each gate learned from 32.8M tokens.")
    assert "learned" not in checks_quality.best_pooling(Run(folder), paper_values()).note  # no such rows
