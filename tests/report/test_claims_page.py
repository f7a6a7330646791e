"""CLAIMS.md: it is what the published rows say, and `seerbench check claims` refuses a page that is not."""

import re

from synthetic_rows import write_kernel_run
from typer.testing import CliRunner

from seerbench.cli import app
from seerbench.errors import ResultsError
from seerbench.paths import ROOT
from seerbench.report import claims_page, verdicts


def test_the_page_is_what_the_published_rows_say():
    assert (ROOT / "CLAIMS.md").read_text() == claims_page.page(verdicts.published_runs())


def test_every_check_that_the_page_names_exists():
    named = re.findall(r"`(seerbench/[\w/]+\.py), (\w+)`", (ROOT / "CLAIMS.md").read_text())
    assert len(named) == len(verdicts.CHECKS)
    for path, function in named:
        assert f"def {function}(" in (ROOT / path).read_text()


def test_a_changed_page_is_refused(tmp_path):
    write_kernel_run(tmp_path / "published" / "machine", 20.0)
    page = tmp_path / "CLAIMS.md"
    arguments = ["check", "claims", "--published", str(tmp_path / "published"), "--page", str(page)]
    assert CliRunner().invoke(app, [*arguments, "--write"]).exit_code == 0
    assert CliRunner().invoke(app, arguments).exit_code == 0
    page.write_text(page.read_text().replace("not reproduced", "reproduced"))
    assert isinstance(CliRunner().invoke(app, arguments).exception, ResultsError)
