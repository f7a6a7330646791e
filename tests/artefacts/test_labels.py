"""Labels: scale, device, dates and commits of the executions that rows name, and remarks on the kernels."""

import pandas as pd
import pytest
from synthetic_rows import SCALE, origin

from seerbench.artefacts import labels

ROWS = pd.DataFrame({"run_id": ["x-0", "x-1"]})


class Origins:
    """A run with two executions; each argument changes the facts of one."""

    def __init__(self, *changes):
        self.runs = pd.DataFrame([origin("x", number, **change) for number, change in enumerate(changes)])

    def table(self, name):
        return self.runs


def test_equal_facts_are_given_once():
    label = labels.label(Origins({}, {}), ROWS, timed=True)
    facts = ("Test CPU, 2 cores",), ("2026-11-22",), ("commit abc1234",)
    assert label == labels.Label((SCALE,), *facts)
    assert str(label) == f"measured: {label.text}"
    assert label.text == f"{SCALE}; Test CPU, 2 cores; 2026-11-22; commit abc1234"


@pytest.mark.parametrize(
    ("change", "commit"),
    [
        ({"dirty": True}, "commit abc1234 (dirty)"),
        ({"dirty": None}, "commit abc1234 (unknown whether clean)"),
        ({"commit": None, "dirty": None}, "unknown commit"),
    ],
)
def test_a_tree_that_is_not_clean_is_named(change, commit):
    assert labels.label(Origins(change, change), ROWS).commits == (commit,)


def test_two_days_and_two_commits():
    later = {"started": "2026-11-24T01:00:00+00:00", "commit": "fff0000"}
    label = labels.label(Origins({}, later), ROWS)
    assert label.dates == ("2026-11-22", "2026-11-24")
    assert label.text.endswith("; 2026-11-22 to 2026-11-24; commit abc1234, commit fff0000")


def test_other_kernels_are_remarked_for_timings_alone(monkeypatch):
    other = {"source_digest": "another"}
    (unknown,) = labels.label(Origins(other, other), ROWS, timed=True).remarks  # git does not know that commit
    assert "perhaps" in unknown
    monkeypatch.setattr(labels, "changed_since", lambda commit, recorded, dirty: ["attend"])
    (changed,) = labels.label(Origins(other, other), ROWS, timed=True).remarks
    assert "perhaps" not in changed
    assert labels.label(Origins(other, other), ROWS).remarks == ()
