"""seerbench advise --all: which sparsities pay off, from which run that is known, and what was not measured."""

import re
import shutil

import pandas as pd
import pytest

from seerbench.paths import PUBLISHED
from seerbench.report import advise_tables

CPU = PUBLISHED / "cpu-xeon-2-cores"


@pytest.fixture(scope="module")
def advice():
    """Return the advice at 2k from the published run of a CPU."""
    return "\n".join(advise_tables.tables(2048, "xeon", [CPU]))


@pytest.mark.parametrize(
    ("low", "high", "word"), [(1.1, 2, "pays off"), (0.5, 0.9, "dense wins"), (0.9, 1.1, "undecided")]
)
def test_the_verdict_follows_the_interval(low, high, word):
    assert advise_tables.verdict(pd.Series({"low": low, "high": high})).startswith(word)


@pytest.mark.parametrize(
    "token", ["planning included", "commit", "Xeon", "x dense", "nats per token", "seer (real:v1)"]
)
def test_advice_has_speed_and_loss_with_their_origin(advice, token):
    assert token in advice


def test_a_context_that_was_not_measured_is_not_extrapolated():
    advice = "\n".join(advise_tables.tables(1024, "xeon", [CPU]))
    assert "1024 was not measured, the nearest are [2048]" in advice
    assert "1024, seer" not in advice


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
    assert advise_tables.in_short(pd.DataFrame(lines)) == text


def test_speed_is_over_the_fastest_dense_kernel_and_loss_may_come_from_another_machine(tmp_path):
    """A run of a GPU with timings alone: FlashAttention-2 and a faster dense kernel are in the same cells."""
    for table in ("cells", "samples"):
        shutil.copytree(PUBLISHED / "h100-speed" / table, tmp_path / table)
    text = "\n".join(advise_tables.tables(32768, "H100", [tmp_path, CPU]))
    assert re.search(r"x (cudnn|fa4) \[", text)
    assert "x fa2 (sdpa-flash), pays off" in text
    assert "nan" not in text  # a method without a requested sparsity has its own
    before, after = text.split("on other machines")
    assert "Xeon" in after
    assert "Xeon" not in before
