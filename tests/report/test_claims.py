"""Claims: the rules of a verdict, the page against the published rows, the paper's own arithmetic."""

import math
import shutil

import pandas as pd
import pytest
from test_artefacts import longbench_rows, perplexity, timings
from typer.testing import CliRunner

from seerbench.cli import app
from seerbench.errors import ResultsError
from seerbench.paths import ROOT
from seerbench.report import checks_quality, claims_page, oddities, verdicts
from seerbench.report.evidence import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Evidence, Part
from seerbench.rows.provenance import provenance
from seerbench.rows.store import Run, write_rows

ROWS = pd.DataFrame()


def at_most_zero(low, high):
    return Part("x", ((low + high) / 2, low, high), 0.0, False, "nats")


@pytest.mark.parametrize(
    ("parts", "missing", "verdict", "said"),
    [
        ([(-2, -1), (-3, -1)], [], REPRODUCED, ""),
        ([(-2, -1), (-1, 1)], [], NOT_REPRODUCED, "Undecided in 1 of 2"),
        ([(1, 2), (-1, 1)], [], NOT_REPRODUCED, "Contradicted by 1 of 2"),
        ([(-2, -1)], ["64k"], NOT_TESTABLE, "missing: 64k"),
        ([(1, 2)], ["64k"], NOT_REPRODUCED, "missing: 64k"),
        ([(math.nan, math.nan)], [], NOT_REPRODUCED, "Undecided"),  # a number without an interval decides nothing
    ],
)
def test_a_verdict_needs_every_interval_and_every_row(parts, missing, verdict, said):
    found, why = verdicts.decide(Evidence([at_most_zero(*part) for part in parts], ROWS, missing))
    assert found == verdict
    assert said in why


def kernel_run(folder, ms, context=32768, driver="600.1", started="2026-11-24T01:00:00+00:00"):
    """A run whose kernel sweep at 90% took `ms` where FlashAttention-2 took 60."""
    run = provenance("latency", preset="test", scale="kernels: a test", seed=0, device="cpu")
    run |= {"driver": driver, "started": started, "device": "Test GPU", "commit": "abc1234", "dirty": False}
    methods = [("fa2", None, {"attend": 60.0}, 1.0), ("block_sparse", 0.9, {"attend": ms}, 1.0)]
    cells, samples = timings(run["run_id"], "kernel", context, methods)
    write_rows(folder / "cells" / "a.parquet", "cells", cells, run)
    write_rows(folder / "samples" / "a.parquet", "samples", samples, run)
    return Run(folder)


def test_minference_at_its_own_sparsity_meets_the_next_gate_that_skips_as_much(tmp_path):
    run = provenance("perplexity", preset="test", scale="small scale: a test", seed=0, device="cpu")
    cells = [("dense", None, "none", None, 0.0), ("minference", "searched", "none", None, 0.0)]
    cells += [("seer", "long:v1", "post", sparsity, 1.0) for sparsity in (0.5, 0.7, 0.9)]
    rows = perplexity(run["run_id"], "contexts", cells, (1024,))
    rows = [{**row, "sparsity_realised": 0.6} if row["method"] == "minference" else row for row in rows]
    write_rows(tmp_path / "perplexity" / "contexts.parquet", "perplexity", rows, run)
    (part,) = checks_quality.below_minference(Run(tmp_path), None).parts
    assert part.what == "1k, 0.68 against 0.60 skipped"  # not the gate at 50%, nor that at 90%
    assert part.contradicts  # it loses 0.7 ** 3 nats, MInference here nothing


def first(*runs):
    return verdicts.judge(runs)[0]


def test_the_kernel_claim_follows_the_rows(tmp_path):
    fast = first(kernel_run(tmp_path / "fast", 6.0))
    assert fast.shown == "reproduced (kernels)"
    assert "Inputs are random" in fast.finding
    assert "Test GPU" in fast.label
    slow = first(kernel_run(tmp_path / "slow", 20.0))
    assert slow.verdict == NOT_REPRODUCED
    assert "Contradicted by 1 of 1" in slow.finding
    assert first(kernel_run(tmp_path / "cpu", 6.0, driver=None)).verdict == NOT_TESTABLE
    short = first(kernel_run(tmp_path / "short", 6.0, context=8192))
    assert "block_sparse beside fa2 at 32k and 90%" in short.finding


def test_of_two_runs_the_later_counts_and_a_cpu_one_never(tmp_path):
    old = kernel_run(tmp_path / "old", 6.0)
    new = kernel_run(tmp_path / "new", 20.0, started="2026-11-25T01:00:00+00:00")
    cpu = kernel_run(tmp_path / "cpu", 1.0, driver=None, started="2026-11-26T01:00:00+00:00")
    assert first(new, cpu, old).verdict == NOT_REPRODUCED


def test_every_claim_of_the_paper_has_a_check(tmp_path):
    assert [one.id for one in verdicts.judge([])] == [f"C{number}" for number in range(1, 18)]
    (tmp_path / "claims.csv").write_text("id,claim,value,unit,where,scope\nC99,more,,,,\n")
    with pytest.raises(ResultsError, match="C99"):
        verdicts.paper_claims(tmp_path)


def test_the_page_is_what_the_published_rows_say():
    assert (ROOT / "CLAIMS.md").read_text() == claims_page.page(verdicts.published_runs())


def test_a_changed_page_is_refused(tmp_path):
    page = tmp_path / "CLAIMS.md"
    shutil.copy(ROOT / "CLAIMS.md", page)
    page.write_text(page.read_text().replace("not reproduced", "reproduced"))
    arguments = ["check", "claims", "--published", str(ROOT / "results" / "published"), "--page", str(page)]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, ResultsError)
    assert CliRunner().invoke(app, [*arguments, "--write"]).exit_code == 0
    assert CliRunner().invoke(app, arguments).exit_code == 0


def test_the_papers_arithmetic():
    said = "\n".join(oddities.oddities())
    assert "12.09 s" in said
    assert "1.57x" in said
    assert "16k: 0.55 and 0.65" in said
    assert "line 14" in said


@pytest.mark.parametrize(("seer", "verdict"), [(0.6, REPRODUCED), (0.4, NOT_REPRODUCED)])
def test_the_longbench_claim_is_about_every_bucket(tmp_path, seer, verdict):
    run = provenance("tasks longbench", preset="test", scale="a test", seed=0, device="cpu")
    run |= {"commit": "abc1234", "dirty": False}
    write_rows(tmp_path / "tasks" / "longbench.parquet", "tasks", longbench_rows(run["run_id"], seer), run)
    judged = {one.id: one for one in verdicts.judge([Run(tmp_path)])}["C17"]
    assert judged.verdict == verdict
    assert [part.what for part in judged.parts] == ["0-4k", "8k+"]
    assert "not LongBench" not in judged.finding
