"""The paper's numbers: how many there are, what is computed of them, and files that are refused."""

import pytest
from synthetic_rows import PAPER

from seerbench.artefacts import table4
from seerbench.artefacts.paper_numbers import paper_values, printed
from seerbench.errors import ResultsError


def test_the_papers_numbers():
    paper = paper_values()
    assert paper.groupby("artefact").size().to_dict() == {
        "table1": 45,
        "table2": 18,
        "table3": 22,
        "table4": 20,
        "fig1c": 1,
        "fig5": 1,
    }
    assert paper[paper.note == "OOM"].value.isna().all()
    speedups = table4.speedups_of_the_paper(printed(paper, "table4"))
    assert speedups[speedups.method == "seer"].value.round(2).tolist() == [1.15, 1.18, 1.29, 1.31, 2.66]


def test_the_sparsity_of_minference_is_realised_and_not_requested():
    minference = printed(paper_values(), "table1").query("method == 'minference'")
    assert minference.sparsity_requested.isna().all()
    assert minference.sparsity_realised.tolist() == [0.37, 0.55, 0.69, 0.80, 0.90]


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("artefact,model", "artefact,modell", "modell"),
        ("perplexity,10.03", "perplexity,ten", "line 2: value is 'ten'"),
        ("perplexity,10.03", "perplexity,", "line 2"),
    ],
)
def test_a_wrong_file_is_refused(old, new, names, tmp_path):
    text = (PAPER / "values.csv").read_text().replace(old, new, 1)
    (tmp_path / "values.csv").write_text(text)
    with pytest.raises(ResultsError, match=names):
        paper_values(tmp_path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ResultsError, match=r"values\.csv"):
        paper_values(tmp_path)
