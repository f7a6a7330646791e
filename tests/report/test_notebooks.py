"""Notebooks: each runs on the published rows, shows what it promises, and its page needs no network."""

import json
from html.parser import HTMLParser

import pytest

from seerbench import errors
from seerbench.errors import ResultsError
from seerbench.paths import ROOT
from seerbench.report import notebooks
from seerbench.rows.store import Run

# What the executed page has to hold, beside its headings: drawn figures at least, and words of its text.
EXPECTED = {
    "results": (10, ("Loss against time", "measured:", "C17", "pays from")),
    "kernels": (1, ("right", "of the dense ceiling", "_walk", "reading the union of their lists: not worth it")),
    "gates": (4, ("recorded (layer, head)", "missed mass", "kept by the gate")),
}


class Links(HTMLParser):
    """Whatever a page would fetch, and the images without a description."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.silent, self.images = [], 0, 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        about = dict(attrs)
        places = [about.get("src")] + ([about.get("href")] if tag == "link" else [])
        self.fetched += [place for place in places if place and not place.startswith(("data:", "#"))]
        if tag == "img":
            self.images += 1
            self.silent += not about.get("alt")


def test_every_notebook_is_tested():
    assert {path.stem for path in notebooks.sources()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_it_runs_on_the_published_rows(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(notebooks.RUN, raising=False)
    book, page = notebooks.execute(ROOT / "notebooks" / f"{name}.py", tmp_path / "out")
    cells = json.loads(book.read_text())["cells"]
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")
    text = page.read_text()
    found = Links(text)
    figures, words = EXPECTED[name]
    assert found.fetched == []
    assert found.silent == 0
    assert found.images >= figures
    for word in words:
        assert word in text, word
    assert "<script" not in text


def test_it_reads_the_run_that_it_is_executed_for_first(monkeypatch):
    fresh = max(
        (ROOT / "results" / "published").glob("*/MANIFEST.json")
    ).parent  # the last is not the default first
    monkeypatch.setenv(notebooks.RUN, str(fresh))
    folders = [run.folder for run in notebooks.runs()]
    assert folders[0] == fresh
    assert len(folders) == len(set(folders)) == len(list((ROOT / "results" / "published").glob("*/MANIFEST.json")))


def test_rows_come_from_the_first_run_that_has_them(tmp_path):
    empty = Run(tmp_path)
    run, rows = notebooks.with_rows([empty, *notebooks.runs()], "cells", sweep="training_kernel")
    assert run.folder != tmp_path
    assert set(rows.sweep) == {"training_kernel"}
    with pytest.raises(ResultsError, match="no run here has rows of cells"):
        notebooks.with_rows([empty], "cells", sweep="training_kernel")


def test_a_cell_that_raises_is_named_and_nothing_is_written(tmp_path):
    (tmp_path / "broken.py").write_text("# %%\nfine = 1\n\n# %%\nfine / 0\n")
    with pytest.raises(errors.NotebookError, match=r"(?s)broken.py.*fine / 0.*ZeroDivisionError"):
        notebooks.execute(tmp_path / "broken.py", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(errors.NotebookError, match=r"no notebook .*nowhere.py; there are .*gates.py"):
        notebooks.execute(tmp_path / "nowhere.py", tmp_path / "out")
