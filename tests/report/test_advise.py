"""seerbench advise: it says what rows say, whose they are, and what is missing."""

import re
import shutil

import pandas as pd
import pytest

from seerbench.paths import ROOT
from seerbench.report import advise

PUBLISHED = ROOT / "results" / "published" / "cpu-xeon-2-cores"


@pytest.mark.parametrize(("wanted", "found"), [(1024, [1024]), (700, [512, 1024]), (64, [512]), (10**6, [2048])])
def test_the_nearest_measured_contexts(wanted, found):
    assert advise.nearest([512, 2048, 1024], wanted) == found


@pytest.mark.parametrize(
    ("low", "high", "text"), [(1.1, 2, "pays off"), (0.5, 0.9, "dense wins"), (0.9, 1.1, "undecided")]
)
def test_the_verdict_is_the_interval_s(low, high, text):
    assert advise.verdict(pd.Series({"low": low, "high": high})).startswith(text)


def test_advice_from_the_published_run_names_its_origin():
    text = "\n".join(advise.advise(2048, "xeon", [PUBLISHED]))
    for part in (
        "planning included",
        "small scale",
        "commit",
        "Xeon",
        "x dense",
        "nats a token",
        "seer (long:v1)",
    ):
        assert part in text
    assert "2048 was not measured, the nearest are [1024, 4096]" in text  # time to first token skips 2048


def line(sparsity, low, high, status="measured"):
    return {"sparsity_requested": sparsity, "low": low, "high": high, "status": status}


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ([line(0.5, 0.5, 0.9), line(0.9, 1.5, 2)], "pays off from 90%, dense wins up to 50%"),
        ([line(0.5, 1.1, 1.2), line(0.9, 1.5, 2)], "pays off from 50%"),
        ([line(0.5, 0.9, 1.1)], "never seen to pay off"),
        ([line(0.5, None, None, "refused")], "not measured"),
    ],
)
def test_a_method_in_short(lines, text):
    assert advise.in_short(pd.DataFrame(lines)) == text


def test_speed_is_over_the_fastest_dense_kernel_and_loss_may_come_from_another_machine(tmp_path):
    """A GPU's run of timings alone: FlashAttention-2 and a faster dense kernel in the same cells."""
    gpu = ROOT / "results" / "published" / "h100-speed"
    for table in ("cells", "samples"):
        shutil.copytree(gpu / table, tmp_path / table)
    text = "\n".join(advise.advise(32768, "H100", [tmp_path, PUBLISHED]))
    assert re.search(r"x (cudnn|fa4) \[", text)
    assert "x fa2 (sdpa-flash), pays off" in text
    assert "nan" not in text  # a method without a requested sparsity has its own
    assert "no perplexity rows in this run" in text
    before, after = text.split("loss was measured on other machines")
    assert "Xeon" in after
    assert "Xeon" not in before


def test_a_context_that_was_not_measured_is_not_extrapolated():
    text = "\n".join(advise.advise(100_000, None, [PUBLISHED]))
    assert "100000 was not measured" in text


def test_an_unknown_machine_is_said():
    assert "no rows from a machine called 'B200'" in "\n".join(advise.advise(2048, "B200", [PUBLISHED]))
