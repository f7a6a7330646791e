"""The figure of context: gains are against the shortest window, look-ups are those of the same tasks."""

import pytest
from synthetic_rows import DENSE, origin, perplexity

from seerbench.artefacts import context_use
from seerbench.artefacts.paper_numbers import paper_values
from seerbench.rows.store import Run, write_rows


def test_gains_are_paired_with_the_shortest_window(collect):
    """The synthetic loss falls by 0.05 nats per doubling of the context, equally in every document."""
    frame = collect("context_use").query("panel == @context_use.TOKENS").set_index(["series", "context"])
    assert set(frame.index) == {
        *(("use", context) for context in (512, 2048)),
        *(("use_yarn", context) for context in (512, 2048, 8192)),
    }
    for doublings, line in zip((0, 2, 0, 2, 4), frame.itertuples()):
        for number in (line.delta, line.delta_low, line.delta_high):
            assert number == pytest.approx(-0.05 * doublings)
        assert line.low < line.y < line.high  # documents differ
    assert frame.recipe["use_yarn", 8192] == "yarn"


def write_lookups(folder, experiment, shares):
    """Write 10 look-ups of dense attention per (task, context) and share of right ones."""
    run = origin(f"tasks {experiment}")
    rows = [
        {
            "run_id": run["run_id"],
            "experiment": experiment,
            "model": "tiny",
            "corpus": "books",
            "task": task,
            "context": context,
            "bucket": str(context),
            "method": "dense",
            "sparsity_requested": None,
            "sparsity_realised": 0.0,
            "example": example,
            "correct": example < 10 * share,
        }
        for (task, context), share in shares.items()
        for example in range(10)
    ]
    write_rows(folder / "tasks" / f"{experiment}.parquet", "tasks", rows, run)


def test_look_ups_before_and_after_yarn_are_those_of_the_same_tasks(tmp_path):
    run = origin("perplexity use")
    write_rows(
        tmp_path / "perplexity" / "use.parquet",
        "perplexity",
        perplexity(run["run_id"], "use", [DENSE], (512, 2048)),
        run,
    )
    without = context_use.collect(Run(tmp_path), paper_values())
    assert set(without.panel) == {context_use.TOKENS}
    assert context_use.draw(without).axes[-1].texts[0].get_text().startswith("This run has no look-ups")
    before = {("kv", 8192): 0.6, ("passkey", 8192): 1.0, ("cloze", 8192): 0.0}
    write_lookups(tmp_path, "retrieval", before)
    write_lookups(tmp_path, "yarn", {("kv", 32768): 0.4, ("passkey", 32768): 1.0})
    frame = context_use.collect(Run(tmp_path), paper_values()).query("panel == @context_use.LOOKUPS")
    assert frame.task.unique().tolist() == ["kv, passkey"]
    assert frame.set_index(["series", "context"]).y.to_dict() == pytest.approx(
        {("use", 8192): 80.0, ("use_yarn", 32768): 70.0}
    )
    assert (frame.low < frame.y).all()
