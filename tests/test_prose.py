"""Documentation, docstrings and comments keep to the language rules of CONTRIBUTING.md, as a search can tell.

    python tests/test_prose.py [FOLDER ...]    list the phrases that break a rule, by file and line

A phrase here is never right in a technical text of ours. The list is of what reviews found, not of all bad English.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Nouns that a rate is counted by: "26 ms a layer" should be "26 ms per layer".
PER = (
    "arm|artefact|batch|block|book|bucket|call|cell|context|corpus|document|example|fact|figure|file|gate|GPU|group|"
    "head|item|job|kernel|key|lane|launch|layer|length|line|machine|method|model|node|number|pass|plan|preset|price|"
    "process|program|query|question|round|row|rule|run|sample|seed|set|shape|sparsity|stage|step|sub-command|sweep|"
    "table|task|thread|tile|token|warp|window"
)
COUNTED = (
    r"bits?|bytes|blocks|columns|counts?|figure|file|GiB|GFLOP|heads|indices|kernel|launch(?:es)?|line|lines|linear|"
    r"lists?|mass|MiB|ms|nats?|points|product|products|programs|registers|row|rows|rule|rules|score|scores|seconds|"
    r"shuffles|stage|steps|sweep|test|threads|tiles?|tokens|us|value|values|vector|warps?|windows"
)
RULES = {
    "write 'per' for a rate": (
        rf"\bnats an? \w+|\bone an? (?:{PER})\b(?! \w+s\b| may| can| will| must)"
        rf"|\b(?:one|a|an) (?!GPU|CPU|becomes|makes|gives|is)[\w-]+ an? (?:{PER})\b(?!['-])"
        rf"|\b(?:two|three|four|five|six|seven|eight|ten|{COUNTED}) an? (?:{PER})\b(?!['-]| \w+s\b)"
        rf"|\d (?:ms|s|us|GB|GiB|MiB) an? (?:{PER})\b"
        r"|\bonce an? (?:round|cell|shape|seed)\b"
    ),
    "write 'minus' for a difference": r"\bless (?:the|that|those|StreamingLLM|dense|MoA|MInference|oracle|one) ",
    "write '>=', 'at least' or the number": (
        r"\bas (?:large|many|high) as (?:a guess|low|high|k|it)\b|\bas large as\b|\bare as large\b|\bso many\b"
    ),
    "write 'is', 'has' or the exact verb": (
        r"\bstands? (?:in(?! for)|on|at|beside|above|below|under|between|there|earlier|before|here|where|first)\b"
        r"|\bstands? or falls?\b|\bstand(?:s|ing)? beside\b|\bwhat is there may be\b|\bhands? on\b|\bcomes? to be\b"
    ),
}
# A phrase may go on in the next line, after indentation and a comment sign.
GAP = r"(?: |\n[ \t]*(?:# ?|> )?)"
PATTERNS = {rule: re.compile(pattern.replace(" ", GAP)) for rule, pattern in RULES.items()}

# A docstring begins with a verb and stands alone.
DOCSTRING = "begin a docstring with a verb; let it stand alone"
LEANS_ON_ANOTHER = ("The same", "As ", "The mask's", "The plan's", "Its ", "So ")
NOMINAL = ("What ", "Who ", "Which ", "Whose ", "Where ")  # of functions; a class may be "What a method needs"

SUFFIXES = (".md", ".py", ".smk", ".yaml", ".yml", ".toml", ".rst", ".sh")
NAMES = ("Snakefile", "Makefile", "CITATION.cff")
SKIPPED = ("tests/test_prose.py",)  # it holds the phrases themselves


def files() -> Iterator[Path]:
    """Return the text files that git knows; published rows are left out."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip(
            "the tree is no git repository, so nobody knows which files belong to it", allow_module_level=True
        )
    for name in sorted(filter(None, listed.stdout.split("\0"))):
        path = ROOT / name
        wanted = path.suffix in SUFFIXES or path.name in NAMES
        if wanted and path.is_file() and name not in SKIPPED and not name.startswith("results/published/"):
            yield path


def folder_of(path: Path) -> str:
    """Return the group that a file is judged with: docs, a package of seerbench, or the top-level name."""
    parts = path.relative_to(ROOT).parts
    if path.suffix == ".md" and parts[0] not in ("README.md", "CONTRIBUTING.md", "CLAIMS.md"):
        return "docs"
    return "/".join(parts[:2]) if parts[0] == "seerbench" and len(parts) > 2 else parts[0]


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(isinstance(each, ast.Name) and "property" in each.id for each in node.decorator_list)


def docstrings(text: str) -> Iterator[tuple[int, str]]:
    """Return line and first line of each docstring that leans on its neighbours or has no verb."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)):
            first = (ast.get_docstring(node) or "").partition("\n")[0]
            function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not _is_property(node)
            if first.startswith(LEANS_ON_ANOTHER) or (function and first.startswith(NOMINAL)):
                yield node.body[0].lineno, first


def offences(path: Path) -> list[str]:
    """Return "file:line: phrase (rule)" for each phrase that breaks a rule, in the order of the file."""
    text = path.read_text()
    found = [
        (text.count("\n", 0, match.start()) + 1, " ".join(match.group().split()), rule)
        for rule, each in PATTERNS.items()
        for match in each.finditer(text)
    ]
    if path.suffix == ".py":
        found += [(line, first, DOCSTRING) for line, first in docstrings(text)]
    return [f"{path.relative_to(ROOT)}:{line}: {phrase!r} ({rule})" for line, phrase, rule in sorted(found)]


FILES: dict[str, list[Path]] = {}
for file in files():
    FILES.setdefault(folder_of(file), []).append(file)


@pytest.mark.parametrize("folder", FILES)
def test_prose(folder):
    found = [line for path in FILES[folder] for line in offences(path)]
    report = f"{len(found)} phrases:\n" + "\n".join(found)
    assert not found, report


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a loss of 0.1 nats a token", "per"),
        ("26 ms a\n    # layer", "per"),
        ("one file a kernel", "per"),
        ("v1 less the oracle", "minus"),
        ("as large as", ">="),
    ],
)
def test_a_known_phrase_is_found(text, rule):
    assert [rule in name for name, pattern in PATTERNS.items() if pattern.search(text)] == [True]


@pytest.mark.parametrize(
    "docstring", ["The same of each head.", "The mask's.", "As `pooled`, on a GPU.", "What is timed."]
)
def test_a_docstring_without_a_verb_is_found(docstring):
    assert list(docstrings(f'def f():\n    """{docstring}"""\n')) == [(2, docstring)]


@pytest.mark.parametrize(
    "text",
    [
        "which blocks a model reads",
        "at sparsity 0 a method is dense",
        "once a week",
        "as a head does",
        "one of a row's blocks",
        "26 ms per layer",
    ],
)
def test_plain_english_passes(text):
    assert not [pattern.search(text).group() for pattern in PATTERNS.values() if pattern.search(text)]


if __name__ == "__main__":
    for name in sys.argv[1:] or FILES:
        lines = [line for path in FILES[name] for line in offences(path)]
        print(f"{name}: {len(lines)}", *lines, sep="\n  ")
