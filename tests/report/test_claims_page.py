"""One tally of claims: CLAIMS.md, the README, the report and the notebook say what the same rows say."""

import re
from html import unescape

import jupytext
import pytest
from synthetic_rows import longbench_rows, origin, write_kernel_run, write_run
from typer.testing import CliRunner

from seerbench.cli import app
from seerbench.errors import ResultsError
from seerbench.paths import ROOT
from seerbench.report import claims_page, html, verdicts
from seerbench.rows.store import Run, write_rows


def test_the_page_is_what_the_published_rows_say():
    assert (ROOT / "CLAIMS.md").read_text() == claims_page.page(verdicts.published_runs())


def test_every_check_that_the_page_names_exists():
    named = re.findall(r"`(seerbench/[\w/]+\.py), (\w+)`", (ROOT / "CLAIMS.md").read_text())
    assert len(named) == len(verdicts.CHECKS)
    for path, function in named:
        assert f"def {function}(" in (ROOT / path).read_text()


def test_a_changed_page_is_refused(tmp_path):
    write_kernel_run(tmp_path / "published" / "machine", 20.0)
    page, readme = tmp_path / "CLAIMS.md", tmp_path / "README.md"
    readme.write_text("Do they hold? {}{}.\n".format(*claims_page.TALLY))
    arguments = ["check", "claims", "--published", str(tmp_path / "published"), "--page", str(page)]
    assert CliRunner().invoke(app, [*arguments, "--write"]).exit_code == 0
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert "0 reproduced, 1 contradicted" in readme.read_text()
    for path, wrong in ((page, "reproduced (paper scale)"), (readme, "1 reproduced, 0 contradicted")):
        right = path.read_text()
        right_words = "contradicted (paper scale)" if path == page else "0 reproduced, 1 contradicted"
        path.write_text(right.replace(right_words, wrong))
        assert isinstance(CliRunner().invoke(app, arguments).exception, ResultsError)
        path.write_text(right)
    assert CliRunner().invoke(app, arguments).exit_code == 0


def test_a_readme_without_a_place_for_the_tally_is_refused():
    with pytest.raises(ResultsError, match="0 places"):
        claims_page.with_tally("no comments here", verdicts.judge([]))


def written(folder, scale_kind):
    """Write a run with rows for most claims, at one scale, and return it."""
    write_kernel_run(folder, 6.0, scale_kind=scale_kind)
    write_run(folder)
    run = origin("tasks longbench", scale_kind=scale_kind)
    write_rows(folder / "tasks" / "longbench.parquet", "tasks", longbench_rows(run["run_id"]), run)
    return Run(folder)


def notebook_page(published, own):
    """Return what the claims cell of the notebook shows, executed here with these runs."""
    source = jupytext.read(ROOT / "notebooks" / "results.py")
    (cell,) = [cell for cell in source.cells if "claims" in cell.metadata.get("tags", [])]
    shown = []
    imports = "from seerbench.report import claims_section, verdicts\n"
    names = {"HTML": str, "display": shown.append, "published": published, "own": own}  # of its first cell
    exec(imports + cell.source, names)
    return shown[0]


CLAIM = r'<article id="([CR]\d+)">.*?<strong class="[\w-]+">(.*?)</strong>'


@pytest.mark.parametrize("own_scale", ["toy", "real"])
def test_all_pages_give_the_same_verdicts_from_the_same_rows(tmp_path, monkeypatch, own_scale):
    """The report and the notebook have the reader's own run too; CLAIMS.md is asked with it as a published one."""
    published = [written(tmp_path / "machine", "small")]
    own = written(tmp_path / "mine", own_scale)
    judgements = verdicts.judge(published, own)
    expected = [(judgement.id, judgement.with_scale) for judgement in judgements]
    assert len({verdict for _, verdict in expected}) > 2
    tally = verdicts.headline(judgements)
    monkeypatch.setattr(html, "ARTEFACTS", {})  # drawing them takes seconds and says nothing about claims
    report = html.html(own, published)
    notebook = notebook_page(published, own)
    for page in (report, notebook):
        assert re.findall(CLAIM, unescape(page), re.DOTALL) == expected
        assert tally in page
    own_text = "This run mine"
    assert own_text in report
    assert own_text in notebook
    readme = claims_page.with_tally("".join(claims_page.TALLY), judgements)
    assert tally in readme
    page = claims_page.page(published)
    varied = "The same poolings at 50%: Qavg_Kmaxmin against"  # C14 is contradicted.
    assert all(varied in unescape(shown) for shown in (report, notebook, page))
    without_own = verdicts.judge(published)
    assert verdicts.headline(without_own) in page
    assert re.findall(r"^\| \*\*([CR]\d+)\*\* .*? \| ([a-z ]+(?: \([\w ]+\))?) \|", page, re.MULTILINE) == [
        (judgement.id, judgement.with_scale) for judgement in without_own
    ]
    if own_scale == "toy":  # A smaller run changes nothing in the tally.
        assert tally == verdicts.headline(without_own)
