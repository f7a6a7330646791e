"""The code blocks, links and the module tree of the documentation are right.

A fenced `sh` or `python` block is run, in a copy of the tree. One that is too long or stands for the reader's
own files has `<!-- not run: reason -->` above it. The shell, make, Snakemake and SeerBench must then accept its
commands as they stand. Commands in running text must name targets, commands and options that exist.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import typer
from snakemake.cli import get_argument_parser, parse_config
from warm_start import warm_start

from seerbench.cli import app
from seerbench.paths import ROOT

BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<kind>sh|bash|python)\n(?P<code>.*?)```", re.S
)
SEERBENCH = typer.main.get_command(app)
USAGE_ERROR = typer.BadParameter.__bases__[0]  # of click, which newer versions of typer contain


PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
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


@pytest.fixture(scope="module")
def warm(copy):
    """Return an environment whose PATH finds forks of the commands of the copy (tests/workflow/warm_start.py)."""
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    with warm_start({**os.environ, "PATH": path, "PYTHONPATH": str(copy)}) as environment:
        yield environment


def commands_in(code):
    """Yield the words of each command of a block, without the variables before it. `<name>` stands for one word."""
    for line in code.splitlines():
        lexer = shlex.shlex(re.sub(r"<[\w /]+>", "placeholder", line), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = []
        for word in [*lexer, ";"]:
            if set(word) <= set("();<>|&"):
                if words:
                    yield words
                words = []
            elif words or not re.match(r"[A-Z_]+=", word):
                words.append(word)


RULES = "".join(path.read_text() for path in [ROOT / "Snakefile", *(ROOT / "workflow" / "rules").glob("*.smk")])


def check_make(arguments):
    done = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check_snakemake(arguments):
    parsed = get_argument_parser().parse_args(arguments)
    parse_config(parsed.config)
    assert parsed.targets or parsed.dryrun, arguments
    for target in parsed.targets:
        assert "/" in target or f"rule {target}:" in RULES, target


def check_seerbench(arguments):
    if arguments[0].startswith("-"):
        assert arguments[0] in {option for each in SEERBENCH.params for option in each.opts}
    else:
        assert arguments[0] in SEERBENCH.commands, arguments
        SEERBENCH.commands[arguments[0]].make_context(arguments[0], arguments[1:])


CHECKS = {"make": check_make, "snakemake": check_snakemake, "seerbench": check_seerbench}


def check_block(code):
    """Fail if a command of a block that is not run would be refused for how it is written."""
    done = subprocess.run(["bash", "-n", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for program, *arguments in commands_in(code):
        if program in CHECKS:
            CHECKS[program](arguments)


@pytest.mark.slow(seconds=0.4)
@pytest.mark.parametrize(("reason", "kind", "code"), blocks())
def test_block(reason, kind, code, copy, request):
    if reason:
        check_block(code)
        return
    shell = ["bash", "-euo", "pipefail", "-c", code] if kind != "python" else ["warm-python", "-c", code]
    environment = request.getfixturevalue("warm")
    done = subprocess.run(shell, cwd=copy, env=environment, capture_output=True, text=True)
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
    "RULER's tasks": "seerbench/data/ruler/tasks.py",
    "question sets": "seerbench/data/question_sets.py",
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


@pytest.mark.parametrize(
    "command",
    [
        "make nothing",
        "make figures && make nothing",
        "seerbench nothing",
        "seerbench advise --contxt 2048",
        "seerbench latency cpu kernel many",
        "seerbench train cpu",
        "SEERBENCH_DATA=x snakemake --cores all --config preset=my.yaml figures",  # without "--"
        "snakemake --cores all -- nothing",
        "snakemake --core-count 3 -- figures",
        "cat <<",
    ],
)
def test_a_command_that_would_be_refused_fails(command):
    with pytest.raises((AssertionError, ValueError, SystemExit, USAGE_ERROR)):
        check_block(command)


INLINE = re.compile(r"(?<!`)`((?:make|snakemake|seerbench) [^`]+)`(?!`)")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CLAIMS.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_running_text_exist(page):
    for (program, name, *arguments), *_ in (list(commands_in(code)) for code in INLINE.findall(page.read_text())):
        if program == "make":
            check_make([name, *arguments])
        elif program == "snakemake" and "--" in arguments:
            check_snakemake([name, *arguments])
        elif program == "seerbench" and not name.startswith("-"):
            assert name in SEERBENCH.commands, name
            options = {option for each in SEERBENCH.commands[name].params for option in each.opts}
            assert {word for word in arguments if word.startswith("--")} <= options, (name, arguments)


def test_snakemake_plans_what_the_readme_tells_it(copy, warm):
    """Each snakemake command of the README runs as it stands, with --dry-run as its first option."""
    preset = (copy / "config" / "cpu.yaml").read_text()
    (copy / "my.yaml").write_text(preset.replace("preset: cpu\n", "preset: my\n"))
    code = "".join(found["code"] for found in BLOCK.finditer((ROOT / "README.md").read_text()))
    told = [arguments for program, *arguments in commands_in(code) if program == "snakemake"]
    assert ["--cores", "all", "--config", "preset=my.yaml", "--", "figures"] in told
    for arguments in told:
        command = ["snakemake", "--dry-run", "--quiet", "all", *arguments]
        done = subprocess.run(command, cwd=copy, env=warm, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
