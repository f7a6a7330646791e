"""The table of recall: means over documents, for both metrics."""

import pytest

from seerbench.artefacts import recall


def test_recall_and_kept_mass_of_each_method(collect):
    frame = collect("recall")
    frame = frame[frame.task.isna()]
    found = frame[frame.metric == "recall"].groupby(["method", "gate"], dropna=False).value.mean()
    assert found["seer", "long:v1"] == pytest.approx(0.8, abs=0.05)
    assert found["seer", "long:untrained"] == pytest.approx(0.4, abs=0.05)
    assert set(frame["count"]) == {5}
    assert frame[frame.metric == "mass"].value.mean() > frame[frame.metric == "recall"].value.mean()


def test_the_asking_row_counts_in_heads_that_look_up_the_answer(collect):
    frame = collect("recall")
    asked = frame[frame.metric == recall.ASKED]
    assert set(asked.task) == {"kv"}
    found = asked.groupby(["method", "gate"], dropna=False).value.mean()
    assert found["seer", "long:v1"] == pytest.approx(0.8)
    assert found["seer", "long:untrained"] == pytest.approx(0.4)
    table = recall.render(frame)
    assert list(dict.fromkeys(table.windows)) == ["kv", "text"]
    kept = table[(table.quantity == "asked block, asking row") & table.method.str.contains("long:v1")]
    assert kept["0.50"].iloc[0].startswith("0.80")
    assert "more than 0.2" in recall.remarks(frame)[-1]
