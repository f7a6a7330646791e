"""An installed wheel, inside another project's repository: what it has it uses, and what it lacks it names.

No wheel is built, which would need a registry for its build system. The package is copied with its links followed,
as setuptools packs it, and the globs of pyproject.toml are checked against the files that code reads.
"""

import json
import shutil
import subprocess
import sys
import tomllib

import pytest

from seerbench.paths import CONFIG, PACKAGE, PAPER, ROOT

COMMANDS = {
    "list": [],
    "doctor": ["gpu"],
    "check": [],
    "advise": ["--context", "8k"],
    "report": ["--run", "nowhere"],
    "tokenizer": ["gpux"],
    "draw": ["table1", "--run", str(ROOT / "results" / "published" / "cpu-xeon-2-cores"), "--out", "drawn"],
}
# Runs every command in one process, from a folder that is not the checkout.
CODE = """
import contextlib, io, json, sys
sys.path.insert(0, sys.argv[1])
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder)]
from seerbench import cli, paths
from seerbench.rows.provenance import commit_and_dirty
found = {"package": str(paths.PACKAGE), "commit": commit_and_dirty()}
for name, arguments in json.loads(sys.argv[2]).items():
    sys.argv = ["seerbench", name, *arguments]
    out, code = io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
    found[name] = code, out.getvalue()

print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return what each command gives: name -> (exit code, output)."""
    folder = tmp_path_factory.mktemp("installed")
    site = folder / "site"
    shutil.copytree(PACKAGE, site / "seerbench", ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(site)]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "another project"]):
        subprocess.run([*git, *arguments], check=True, stdout=subprocess.DEVNULL)
    (folder / "here").mkdir()
    command = [sys.executable, "-c", CODE, str(site), json.dumps(COMMANDS)]
    done = subprocess.run(command, cwd=folder / "here", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["package"] == str(site / "seerbench")
    return found | {"here": folder / "here"}


def test_the_wheel_packs_the_files_that_code_reads():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"][
        "package-data"
    ]
    packed = {path.resolve() for pattern in data["seerbench"] for path in PACKAGE.glob(pattern)}
    assert {*CONFIG.glob("*.yaml"), PAPER / "values.csv", PAPER / "claims.csv"} <= packed


def test_a_wheel_has_presets_and_the_papers_values(installed):
    assert installed["list"][0] == 0
    code, out = installed["doctor"]
    assert code == 1  # the preset's texts are missing
    assert "preset     gpu: " in out
    assert "installed  from a wheel" in out
    code, out = installed["draw"]
    assert code == 0, out
    assert (installed["here"] / "drawn" / "table1.csv").is_file()
    assert "known presets: cpu, gpu, paper, speed" in installed["tokenizer"][1]


@pytest.mark.parametrize("name", ["check", "advise", "report", "tokenizer"])
def test_what_a_wheel_lacks_is_one_line(installed, name):
    code, out = installed[name]
    assert code == 1
    assert out.startswith("seerbench: no ")
    assert len(out.splitlines()) == 1


def test_the_commit_of_the_repository_around_a_wheel_is_not_recorded(installed):
    assert installed["commit"] == [None, None]
