"""The table of recall: means over documents, for both metrics."""

import pytest


def test_recall_and_kept_mass_of_each_method(collect):
    frame = collect("recall")
    recall = frame[frame.metric == "recall"].groupby(["method", "gate"], dropna=False).value.mean()
    assert recall["seer", "long:v1"] == pytest.approx(0.8, abs=0.05)
    assert recall["seer", "long:untrained"] == pytest.approx(0.4, abs=0.05)
    assert set(frame["count"]) == {5}
    assert frame[frame.metric == "mass"].value.mean() > frame[frame.metric == "recall"].value.mean()
