"""docs/LOG.md keeps to its template, and its index is that of its entries."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("log_index", ROOT / "tools" / "log_index.py")
log_index = importlib.util.module_from_spec(spec)
spec.loader.exec_module(log_index)

ENTRY = """## A title

2026-01-01 · [kernel] [gate] · outcome: -

**Question.** Q

**Setup.** S

**Prediction.** P

**Result.** R

**Decision.** D
"""
LOG = f"# Log\n\n{log_index.BEGIN}\n{log_index.END}\n\n{ENTRY}"


def test_the_log_follows_the_template():
    assert log_index.problems((ROOT / "docs" / "LOG.md").read_text()) == []


def test_the_index_lists_every_entry():
    text = log_index.with_index(LOG)
    assert "| 2026-01-01 | [kernel] [gate] | [A title](#a-title) | - |" in text
    assert log_index.problems(text) == []
    assert log_index.with_index(text) == text


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("A title", "T" * 81, "81 characters"),
        ("**Prediction.** P\n", "", "Prediction"),
        ("[gate]", "[cake]", "cake"),
        ("outcome: -", "outcome: maybe", "maybe"),
        ("2026-01-01 · ", "", "date"),
    ],
)
def test_an_incomplete_entry_is_named(old, new, names):
    found = log_index.problems(log_index.with_index(LOG.replace(old, new, 1)))
    assert len(found) == 1
    assert names in found[0]


def test_an_index_that_is_out_of_date_is_a_problem():
    text = log_index.with_index(LOG)
    assert log_index.problems(text.replace("A title", "B title", 1)) != []


def test_an_older_entry_on_top_is_a_problem():
    later = ENTRY.replace("2026-01-01", "2026-01-02").replace("A title", "A later title")
    assert log_index.problems(log_index.with_index(f"{LOG}\n{later}")) == [
        "the entries are not in order, newest first"
    ]
