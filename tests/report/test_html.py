"""The report: it fetches nothing, its data are the artefact's, and what a run lacks is named."""

import base64
import gzip
import io
import re
from html import unescape
from html.parser import HTMLParser

import pandas as pd
import pytest
from synthetic_rows import DENSE, origin, perplexity

from seerbench import artefacts
from seerbench.artefacts import ARTEFACTS
from seerbench.errors import ResultsError
from seerbench.paths import PUBLISHED, ROOT
from seerbench.report import artefact_sections, html, page_style
from seerbench.rows.store import Run, write_rows

RUN = PUBLISHED / "cpu-xeon-2-cores"


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page():
    return html.html(Run(RUN))


def test_it_fetches_nothing_and_has_every_part(page):
    elements = Elements(page).elements
    links = [
        attributes.get("href") or attributes.get("src")
        for tag, attributes in elements
        if tag in ("a", "img", "link", "script")
    ]
    assert all(link.startswith(("#", "data:")) for link in links if link not in (None, html.PAPER_LINK))
    assert not [tag for tag, attributes in elements if tag == "link" or "srcset" in attributes]
    assert all(attributes.get("src", "data:").startswith("data:") for _, attributes in elements)
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link and link[0] == "#"} <= set(ids)
    assert all(attributes["alt"] for tag, attributes in elements if tag == "img")
    commit = Run(RUN).table("runs").commit.iloc[0][:7]
    for text in ("C17", "reproduced (small scale)", "not testable here", commit, "12.09 s", "train long"):
        assert text in page


def test_the_page_answers_a_strangers_questions_in_their_order(page):
    """The first picture once came after 17 claims and 4 tables, about 10,000 pixels down."""
    elements = Elements(page).elements
    sections = [attributes["id"] for tag, attributes in elements if tag == "h2"]
    assert sections == ["choice", "claims", "reproduce", "artefacts", "cost"]
    tags = [tag for tag, _ in elements]
    assert tags.index("svg") < min(tags.index("table"), tags.index("article"), tags.index("details"))
    assert html.PAPER_LINK in page[: page.index("<svg")]
    text_above = re.sub("<[^>]*>", "", page[page.index("</style>") : page.index("<svg")])
    assert len(text_above) < 1200
    assert "make figures PRESET=cpu" in page


def test_the_words_of_the_tables_are_explained(page):
    text = unescape(page)
    explained = " ".join(re.findall("<dt>(.*?)</dt>", text))
    for word in ("loss", "realised", "own", "long:v1", "captured:", "refused", "random", "last rows dense"):
        assert word in explained


def test_nothing_scrolls_sideways_without_saying_so(page):
    boxes = page.count('<div class="wide"')
    assert boxes == page.count(f'{page_style.HINT}<div class="wide"') > 0
    outside = re.sub(r'<div class="wide".*?</div>', "", page, flags=re.DOTALL)
    assert "<table" not in outside
    assert "<img" not in outside


def test_long_tables_are_folded_below_a_chart(page):
    lines = pd.DataFrame({"method": ["a"] * (artefact_sections.LONG + 1), "8k": "1"})
    assert artefact_sections.table(lines).startswith("<details><summary>Table of 41 lines</summary>")
    assert not artefact_sections.table(lines[1:]).startswith("<details>")
    for section in page.split("<section>"):
        above, folded, _ = section.partition("<summary>Table of")
        assert not folded or "<svg" in above or html.ABOVE in above


def test_a_figure_says_its_origin_once(page):
    """The caption in the picture was once repeated under it."""
    for section in page.split("<section>"):
        if "<img" in section:
            assert '<ul class="label">' not in section


def test_what_all_lines_share_is_in_the_caption():
    """The columns source, model and corpus once pushed the numbers off a narrow screen."""
    cells = pd.DataFrame(
        {
            "source": ["paper", "measured", "measured"],
            "model": ["Llama", "small", "small"],
            "method": ["Dense", "Dense", "MoA"],
            "8k": ["1", "2", "3"],
        }
    )
    text = artefact_sections.table(cells)
    assert "<caption>paper: Llama; measured: small</caption>" in text
    assert re.findall('<th scope="col">([^<]*)</th>', text) == ["source", "method", "8k"]
    alone = artefact_sections.table(cells[cells.source == "measured"])
    assert "<caption>measured: small</caption>" in alone
    assert re.findall('<th scope="col">([^<]*)</th>', alone) == ["method", "8k"]


def test_the_data_are_the_artefacts(page, tmp_path):
    artefacts.make("table3", RUN, ROOT / "results" / "paper", tmp_path)
    data = re.search(r'download="table3.csv" href="data:text/csv;base64,([^"]+)"', page).group(1)
    assert base64.b64decode(data) == (tmp_path / "table3.csv").read_bytes()
    maps = re.search(r'download="fig7.csv.gz" href="data:application/gzip;base64,([^"]+)"', page).group(1)
    frame = pd.read_csv(io.BytesIO(gzip.decompress(base64.b64decode(maps))))
    assert len(frame) == len(Run(RUN).table("maps"))


def test_a_run_with_one_table_names_what_it_lacks(tmp_path):
    run = origin("train", scale="<b>x</b>")
    row = {"name": "m", "kind": "pretrain", "recipe": "none", "step": 0, "tokens": 1, "context": 1}
    rows = [{**row, "learning_rate": 0.1, "run_id": run["run_id"]}]
    write_rows(tmp_path / "training" / "a.parquet", "training", rows, run)
    text = html.html(Run(tmp_path))
    assert text.count('<p class="missing"') == len(ARTEFACTS)
    assert "<b>x</b>" not in text
    assert "PRESET" not in text  # no command that cannot work


@pytest.mark.parametrize(
    ("preset", "said"),
    [
        ("speed", "The preset speed does not measure this: it has no perplexity/gates."),  # of `ablation`
        ("cpu", "The preset measures them; to finish its run: make figures PRESET=cpu"),  # of the others
        ("gone.yaml", "This run has no perplexity rows of the experiment &#x27;gates&#x27;.</p>"),
    ],
)
def test_a_missing_artefact_says_whether_the_preset_measures_it(tmp_path, preset, said):
    run = origin("perplexity use", preset=preset)
    rows = perplexity(run["run_id"], "use", [DENSE], (1024,))
    write_rows(tmp_path / "perplexity" / "use.parquet", "perplexity", rows, run)
    assert said in html.html(Run(tmp_path))


def test_a_run_without_rows_is_refused(tmp_path):
    with pytest.raises(ResultsError, match="no rows"):
        html.html(Run(tmp_path))
