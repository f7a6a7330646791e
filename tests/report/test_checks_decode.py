"""Claims of SeerAttention-R: each is judged from rows made to hold it, to break it, or to leave it open."""

import pytest
from synthetic_rows import origin, timings

from seerbench.artefacts.paper_numbers import paper_values_r
from seerbench.errors import MissingRows, ResultsError
from seerbench.report import checks_decode
from seerbench.report.evidence import CONTRADICTED, NOT_MEASURED, REPRODUCED, UNDECIDED
from seerbench.report.verdicts import decide, judge
from seerbench.rows.store import Run, write_rows

PAPER = paper_values_r()
FACTS = {"driver": "600.1", "device": "Test GPU", "scale_kind": "paper"}


def timed(folder, faster, context=32768, kept=None, **facts):
    """Write one cell of the sweep `decode`: dense decoding takes 1 ms at 90%, and the gate `faster` times fewer."""
    run = origin("latency", "decode", **FACTS | facts)
    methods = [("dense", None, {"attend": 1.0}, 1.0), ("seer-r", 0.9, {"attend": 1.0 / faster}, 1.0)]
    cells, samples = timings(run["run_id"], "decode", context, methods)
    of_gate = {"batch": 8, "kept_mib": kept}
    cells = [cell | (of_gate if cell["method"] == "seer-r" else {}) for cell in cells]
    write_rows(folder / "cells" / "decode.parquet", "cells", cells, run)
    write_rows(folder / "samples" / "decode.parquet", "samples", samples, run)
    return Run(folder)


@pytest.mark.parametrize(("faster", "verdict"), [(12.0, UNDECIDED), (5.0, CONTRADICTED)])
def test_the_speed_up_is_judged_by_the_best_cell_and_never_reproduced_over_another_baseline(
    tmp_path, faster, verdict
):
    evidence = checks_decode.kernel_speedup(timed(tmp_path, faster), PAPER)
    assert decide(evidence)[0] == verdict
    assert evidence.missing == ["FlashAttention-3 as the baseline"]
    (comparison,) = evidence.comparisons
    assert comparison.bound == 9
    assert comparison.interval[0] == pytest.approx(faster, rel=0.05)
    assert comparison.what.endswith("at 32k, batch 8")


def test_the_speed_up_needs_a_gpu_and_the_lengths_of_the_benchmark(tmp_path):
    for name, facts in (("cpu", {"driver": None}), ("short", {"context": 4096})):
        with pytest.raises(MissingRows, match="90% beside dense"):
            checks_decode.kernel_speedup(timed(tmp_path / name, 12.0, **facts), PAPER)


@pytest.mark.parametrize(("kept", "verdict"), [(1.0, REPRODUCED), (2.0, CONTRADICTED)])
def test_compressed_keys_are_counted_against_the_whole_cache(tmp_path, kept, verdict):
    """The cache of 8 sequences of 32k tokens, with 2 heads of 32 in float32, takes 128 MiB."""
    evidence = checks_decode.compressed_keys(timed(tmp_path, 9.0, kept=kept, driver=None), PAPER)
    assert evidence.comparisons[0].interval[0] == pytest.approx(100 * kept / 128, rel=1e-3)
    assert decide(evidence)[0] == verdict


def decoded(budget=None, gate=True, **columns):
    """Return the columns of a row that was decoded, by a gate with a budget or densely."""
    way = {"decode": "seer-r", "decode_gate": "d:r", "decode_block": 64} if gate else {"decode": "dense"}
    place = {"experiment": "decode", "model": "tiny", "corpus": "books", "context": 8192, "method": "dense"}
    return {**place, **way, "decode_budget": budget, "sparsity_realised": 0.0, "decode_sparsity": 0.5, **columns}


def write_losses(folder, losses, **columns):
    """Write rows of decoded tokens: budget -> loss over dense."""
    run = origin("perplexity", "decode")
    fixed = {"run_id": run["run_id"], "recipe": "none", "tokens": 256, "status": "measured"}
    rows = [
        fixed
        | decoded(budget, document=f"d{document}", nll=2.0 + 0.1 * document + loss + 0.001 * document * loss)
        | columns
        for budget, loss in losses.items()
        for document in range(6)
    ]
    write_rows(folder / "perplexity" / "decode.parquet", "perplexity", rows, run)
    return Run(folder)


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [({256: 0.3, 512: 0.2, 1024: 0.1}, UNDECIDED), ({256: 0.3, 512: 0.1, 1024: 0.2}, CONTRADICTED)],
)
def test_more_budget_is_judged_between_neighbors_and_never_without_aime(tmp_path, losses, verdict):
    evidence = checks_decode.more_is_better(write_losses(tmp_path, losses), PAPER)
    assert decide(evidence)[0] == verdict
    words = [comparison.what for comparison in evidence.comparisons]
    assert words == [f"d:r on books, 8k: {pair} tokens" for pair in ("512 against 256", "1024 against 512")]
    assert evidence.missing == ["AIME24"]


def test_other_prefills_and_single_budgets_do_not_count(tmp_path):
    for name, losses, columns in (("one", {256: 0.3}, {}), ("sparse", {256: 0.3, 512: 0.2}, {"method": "seer"})):
        with pytest.raises(MissingRows, match="two budgets"):
            checks_decode.more_is_better(write_losses(tmp_path / name, losses, **columns), PAPER)


def write_scores(folder, right, context=8192, budget=4096):
    """Write scores of 40 examples: dense answers all of them, the gate a share."""
    run = origin("tasks", "decode")
    rows = [
        decoded(budget if gate else None, gate, run_id=run["run_id"], task="passage", bucket="8k", context=context)
        | {"example": example, "score": 1.0 if not gate or example < 40 * right else 0.0}
        for gate in (True, False)
        for example in range(40)
    ]
    write_rows(folder / "tasks" / "decode.parquet", "tasks", rows, run)
    return Run(folder)


@pytest.mark.parametrize(("right", "holds"), [(1.0, True), (0.5, False)])
def test_other_tasks_support_the_claim_on_aime_and_never_contradict_it(tmp_path, right, holds):
    evidence = checks_decode.near_lossless(write_scores(tmp_path, right), PAPER)
    (comparison,) = evidence.comparisons
    assert comparison.bound == pytest.approx(-3.18)  # Qwen3-14B: 75.73 of 78.91
    assert (comparison.holds, comparison.contradicts) == (holds, False)
    assert decide(evidence)[0] == UNDECIDED
    assert evidence.missing == ["AIME24"]


@pytest.mark.parametrize("changes", [{"context": 4096}, {"budget": 2048}])
def test_the_budget_is_4096_tokens_of_more(tmp_path, changes):
    with pytest.raises(MissingRows, match="at longer contexts"):
        checks_decode.near_lossless(write_scores(tmp_path, 1.0, **changes), PAPER)


def test_claims_of_the_second_paper_are_judged_by_its_own_numbers(tmp_path):
    judgements = {each.id: each for each in judge([timed(tmp_path, 12.0, kept=1.0)])}
    assert judgements["R1"].with_scale == "undecided (paper scale)"
    assert judgements["R4"].verdict == REPRODUCED
    assert {judgements["R2"].verdict, judgements["R3"].verdict} == {NOT_MEASURED}
    assert judgements["R1"].check == "seerbench/report/checks_decode.py, kernel_speedup"


def test_a_damaged_file_of_numbers_is_one_line(tmp_path):
    (tmp_path / "values-r.csv").write_text("source,model,task,budget,value,unit,note\na,m,AIME24,4k,1,%,\n")
    with pytest.raises(ResultsError, match="line 2: budget is '4k', not a number"):
        paper_values_r(tmp_path)
