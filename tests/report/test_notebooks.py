"""Notebooks: each runs on the published rows, shows its figures, and its page needs no network."""

import json
import re
from html.parser import HTMLParser

import pytest
from synthetic_rows import write_timings

from seerbench.artefacts import ARTEFACTS
from seerbench.errors import MissingRows, NotebookError
from seerbench.paths import PUBLISHED, ROOT
from seerbench.report import notebooks, page_style
from seerbench.rows.store import Run

# name -> (the least number of figures of the executed page, words that it contains)
EXPECTED = {
    "results": (10, ("Loss against time", "measured:", "C17", "pays from")),
    "kernels": (
        1,
        ("right", "of dense", "_inner_loop", "reading the union of their lists: not worth it"),
    ),
    "compare_methods": (1, ("StreamingLLM", "loses less", "skipped: -", "right, %")),
    "gates": (4, ("recorded (layer, head)", "missed mass", "kept by the gate")),
}


class Links(HTMLParser):
    """What a page would fetch, its images, and how many of them have no description."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.undescribed, self.images = [], 0, 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        places = [attributes.get("src")] + ([attributes.get("href")] if tag == "link" else [])
        self.fetched += [place for place in places if place and not place.startswith(("data:", "#"))]
        if tag == "img":
            self.images += 1
            self.undescribed += not attributes.get("alt")


def test_every_notebook_is_tested():
    assert {path.stem for path in notebooks.sources()} == set(EXPECTED)


def test_no_text_is_in_a_marker_line():
    """Jupytext takes it for the title of the cell, and the page lacks the beginning of the sentence."""
    for path in notebooks.sources():
        assert re.findall(r"^# %% \[markdown\] [^\[{]*$", path.read_text(), re.MULTILINE) == [], path


@pytest.mark.slow(seconds=11)
@pytest.mark.parametrize("name", EXPECTED)
def test_it_runs_on_the_published_rows(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(notebooks.RUN, raising=False)
    if name == "compare_methods":  # its first run has no dense method to take a speed-up over
        stages = {"plan": 1.0, "attend": 2.0, "total": 3.0}
        timed = [("dense", None, stages, 1.0), ("seer", 0.5, stages, 1.0), ("streaming", 0.5, stages, 1.0)]
        write_timings(tmp_path / "run", "methods", 4096, timed, refused={"dense": "no memory left"})
        monkeypatch.setenv(notebooks.RUN, str(tmp_path / "run"))
    book, page = notebooks.execute(ROOT / "notebooks" / f"{name}.py", tmp_path / "out")
    cells = json.loads(book.read_text())["cells"]
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")
    text = page.read_text()
    links = Links(text)
    figures, words = EXPECTED[name]
    assert links.fetched == []
    assert links.undescribed == 0
    assert links.images >= figures
    for word in words:
        assert word in text, word
    assert text.count("<script") == text.count(page_style.SCRIPT) == 1  # which measures boxes that scroll
    sections = re.findall('<h2 id="(part-\\d+)">', text)
    assert re.findall('<a href="#(part-\\d+)">', text) == sections
    if name == "results":
        # Every artefact once came once per machine, and the answers after the tables: 40,000 pixels.
        assert links.images <= sum(entry.kind == "figure" for entry in ARTEFACTS.values())
        answers, evidence = (
            text.index(f">{title}</h2>") for title in ("Loss against time", "Are they the right blocks?")
        )
        assert answers < text.index("pays from") < evidence
        tally = re.search(r"\*\*(\d+ claims: .*?)\.\*\*", (ROOT / "CLAIMS.md").read_text(encoding="utf-8")).group(1)
        assert tally in text


def test_it_reads_the_run_that_it_is_executed_for_first(monkeypatch):
    fresh = max(PUBLISHED.glob("*/MANIFEST.json")).parent  # Without the variable, another run is the first.
    monkeypatch.setenv(notebooks.RUN, str(fresh))
    folders = [run.folder for run in notebooks.runs()]
    assert folders[0] == fresh
    assert len(folders) == len(set(folders)) == len(list(PUBLISHED.glob("*/MANIFEST.json")))


def test_rows_come_from_the_first_run_that_has_them(tmp_path):
    empty = Run(tmp_path)
    run, rows = notebooks.with_rows([empty, *notebooks.runs()], "cells", sweep="training_kernel")
    assert run.folder != tmp_path
    assert set(rows.sweep) == {"training_kernel"}
    with pytest.raises(MissingRows, match="training_kernel"):
        notebooks.with_rows([empty], "cells", sweep="training_kernel")


def test_a_cell_that_raises_is_named_and_nothing_is_written(tmp_path):
    (tmp_path / "broken.py").write_text("# %%\nfine = 1\n\n# %%\nfine / 0\n")
    with pytest.raises(NotebookError, match=r"(?s)broken\.py.*ZeroDivisionError.*fine / 0"):
        notebooks.execute(tmp_path / "broken.py", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(NotebookError, match=r"nowhere\.py.*gates\.py"):
        notebooks.execute(tmp_path / "nowhere.py", tmp_path / "out")
