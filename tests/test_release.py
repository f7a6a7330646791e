"""The parts of a release agree: one version everywhere, and a site whose menu and links lead to pages."""

import importlib.util
import re
import tarfile
import tomllib
import zipfile

import pytest
import yaml

from seerbench import __version__
from seerbench.paths import ROOT


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest, date = re.search(r"^## ([\d.]+), (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.M).groups()
    assert project["version"] == citation["version"] == newest == __version__
    assert str(citation["date-released"]) == date
    assert citation["license"] == project["license"]


def test_the_site_has_every_page_in_its_menu_and_every_file_that_links_lead_to():
    pages = tool("make_site").pages(ROOT / "README.md")
    menu = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert set(menu) <= set(pages)
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= set(menu)
    assert pages["docs/images/cpu-fig1.png"] == (ROOT / "docs" / "images" / "cpu-fig1.png").read_bytes()
    example = pages["examples/pooled_top_k.py.md"].decode()
    assert example.startswith("# pooled_top_k.py\n\n````python\n")
    assert "](../examples/pooled_top_k.py.md)" in pages["docs/evaluate.md"].decode()


def test_links_in_code_blocks_and_to_other_sites_stay():
    made = tool("make_site")
    text = "[a](b.py#L1) [c](https://d.e/f.py)\n```sh\n[x](y.py)\n```\n[g](h.md)\n"
    assert made.links(text) == ["b.py", "h.md"]
    assert made.with_pages(text) == text.replace("b.py#L1", "b.py.md#L1")


def test_archives_without_a_data_file_or_with_tests_fail(tmp_path):
    check = tool("release_check")

    def archives(names):
        with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
            for name in names:
                wheel.writestr(name, "")
        with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as sdist:
            for name in names:
                sdist.addfile(tarfile.TarInfo(f"seerbench-0/{name}"))
        return tmp_path / "a.whl", tmp_path / "a.tar.gz"

    right = [f"seerbench/{name}" for name in check.DATA]
    check.check_content(*archives(right))
    with pytest.raises(SystemExit, match=r"missing: \['seerbench/config/cpu.yaml'\]"):
        check.check_content(*archives(right[1:]))
    with pytest.raises(SystemExit, match=r"tests/test_x\.py"):
        check.check_content(*archives([*right, "tests/test_x.py"]))
