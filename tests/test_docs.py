"""The code blocks, links and the module tree of the documentation are right.

A fenced `sh` or `python` block is run, in a copy of the tree. One that is too long or stands for the reader's
own files has `<!-- not run: reason -->` above it; its make targets and seerbench commands must then exist.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from seerbench.cli import app
from seerbench.paths import ROOT

BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<kind>sh|bash|python)\n(?P<code>.*?)```", re.S
)
COMMANDS = {command.name or command.callback.__name__ for command in app.registered_commands}
COMMANDS |= {group.name for group in app.registered_groups}


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / folder / "README.md" for folder in ("baselines", "config", "figures", "kernels", "results/paper")]


def blocks():
    for path in PAGES:
        for number, found in enumerate(BLOCK.finditer(path.read_text())):
            name = f"{path.relative_to(ROOT)}-{number}"
            yield pytest.param(found["reason"], found["kind"], found["code"], id=name)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs") / "tree"
    leave = shutil.ignore_patterns(".*", "__pycache__", "fresh", "logs", "*.egg-info")
    shutil.copytree(ROOT, folder, symlinks=True, ignore=leave)
    return folder


def check_names(code):
    """Targets and commands of a block that is not run are there."""
    targets = set(re.findall(r"^([a-z]+)(?: [a-z ]+)?:", (ROOT / "Makefile").read_text(), re.M))
    targets |= {"figures", "tables", "report"}
    rules = "".join(path.read_text() for path in [ROOT / "Snakefile", *(ROOT / "workflow" / "rules").glob("*.smk")])
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert words[1] in targets, line
        elif words[:1] == ["seerbench"] and not words[1].startswith("--"):
            assert words[1] in COMMANDS, line
        elif words[:1] == ["snakemake"]:
            assert any(f"rule {word}:" in rules for word in words[1:]), line


@pytest.mark.parametrize(("reason", "kind", "code"), blocks())
def test_block(reason, kind, code, copy):
    if reason:
        check_names(code)
        return
    shell = ["bash", "-euo", "pipefail", "-c", code] if kind != "python" else [sys.executable, "-c", code]
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    done = subprocess.run(
        shell, cwd=copy, env={**os.environ, "PATH": path, "PYTHONPATH": str(copy)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    dead = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert dead == []


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name})" not in index]
    assert missing == ["README.md"]


TREE = re.compile(r"<!-- tree: [^\n]+ -->\n```text\n(.*?)```", re.S)
CODE = ("seerbench", "kernels", "baselines")


def tree_of(page):
    """Return the files of the tree in a page: each line is indented by two spaces per folder above it."""
    folders, files = [], set()
    for line in TREE.search(page)[1].splitlines():
        name = line.split()[0]
        folders[(len(line) - len(line.lstrip())) // 2 :] = []
        if name.endswith("/"):
            folders.append(name)
        else:
            files.add("".join(folders) + name)
    return files


def test_the_tree_in_the_architecture_page_names_every_module():
    named = tree_of((ROOT / "docs" / "architecture.md").read_text())
    there = {
        path.relative_to(ROOT).as_posix()
        for folder in CODE
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py" and not path.is_relative_to(ROOT / "seerbench" / "kernels")
        if not path.is_relative_to(ROOT / "seerbench" / "baselines")  # links to the top-level folders
    }
    missing = {file for file in there - named if file.startswith("seerbench/")}  # a new baseline or kernel may be
    assert {"not in the tree": sorted(missing), "not in the code": sorted(named - there)} == {
        "not in the tree": [],
        "not in the code": [],
    }


# What a reader looks for, and the file whose name should say it.
CONCEPTS = {
    "sampler": "seerbench/measure/sampler.py",
    "top-k rule": "seerbench/core/top_k.py",
    "float64 reference": "seerbench/core/reference.py",
    "tolerance": "seerbench/core/tolerance.py",
    "list of block-sparse kernels": "seerbench/methods/block_sparse_kernels.py",
    "RoPE": "seerbench/core/rope.py",
    "YaRN": "seerbench/models/yarn.py",
    "Muon": "seerbench/training/muon.py",
    "row schema": "seerbench/rows/schema.py",
    "bootstrap": "seerbench/rows/bootstrap.py",
    "GPU lock": "seerbench/measure/gpu_lock.py",
    "FSDP": "seerbench/training/fsdp.py",
    "Hugging Face model": "seerbench/models/hugging_face.py",
    "arms to methods": "seerbench/steps/arms.py",
    "fidelity cards": "seerbench/methods/cards.py",
    "MoA's search": "seerbench/search/moa.py",
    "MInference's search": "seerbench/search/minference.py",
    "LongBench": "seerbench/data/longbench.py",
    "claims": "seerbench/report/claims_page.py",
    "colours": "seerbench/artefacts/colors.py",
    "the paper's numbers": "results/paper/README.md",
    "publishing": "seerbench/rows/publish.py",
    "staleness": "seerbench/rows/staleness.py",
    "random weights": "seerbench/models/random_weights.py",
    "source digest": "seerbench/rows/source_digest.py",
}


def test_each_concept_is_found_by_file_name():
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert [name for name, path in CONCEPTS.items() if not (ROOT / path).is_file()] == []
    assert [path for path in CONCEPTS.values() if path not in tree_of(page) and "results/paper/" not in path] == []
    assert "`results/paper/`" in page


def test_a_block_with_an_unknown_target_fails():
    with pytest.raises(AssertionError):
        check_names("make nothing")
    with pytest.raises(AssertionError):
        check_names("seerbench nothing")
