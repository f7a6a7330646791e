"""docs/add-a-method.md and docs/add-a-kernel.md, followed literally, give what passes the project's tests.

The pages say in comments which file a block is and which line goes where. A copy of the tree gets these files and
lines and nothing else, and the tests that hold for every method and kernel run in it.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest

from seerbench.artefacts import colors
from seerbench.methods import registry
from seerbench.methods.cards import read_cards
from seerbench.paths import ROOT
from seerbench.rows.source_digest import definitions, definitions_here, sources_on_disk

LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "fresh", "published", "logs", "*.png", "*.svg")
FILE = re.compile(r"<!-- file: (\S+) -->\n```python\n(.*?)```", re.S)
LINE = re.compile(r"<!-- line: (\S+), (.+) -->\n```text\n(.*?\n)```", re.S)
# The tests that know every method, kernel, card, color or file.
CONTRACTS = ("baselines/test_every_method.py", "methods/test_block_sparse_kernels.py", "methods/test_registry.py")
CONTRACTS += ("artefacts/test_colors.py", "presets/test_schema.py", "test_docs.py", "test_encodings.py")
CHOSEN = "window or row_gather or palette or readme_of or with_a_card or own_class or tree_in_the or color or utf_8"
# One process checks what `compare` takes, which must print nothing, and runs the tests.
COMMANDS = """
import contextlib, io, sys, pytest
from seerbench.compare.load import kernel_named, load
from seerbench.kernels import flex_attention
flex_attention.flex_block_sparse = flex_attention.masked_attention  # the former compiles for 20 s
said = io.StringIO()
with contextlib.redirect_stdout(said):
    assert kernel_named("row_gather").name == "row_gather"
    assert load("baselines/window.py").name == "window"
assert said.getvalue() == ""
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Return a copy of the tree in which both pages were followed."""
    tree = shutil.copytree(ROOT, tmp_path_factory.mktemp("extended") / "tree", symlinks=True, ignore=LEFT_OUT)
    for page in ("add-a-method.md", "add-a-kernel.md"):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for name, content in FILE.findall(text):
            assert not (tree / name).exists()
            (tree / name).write_text(content, encoding="utf-8")
        for name, after, line in LINE.findall(text):
            content = (tree / name).read_text(encoding="utf-8")
            assert content.count(after) == 1
            (tree / name).write_text(content.replace(after, f"{after}\n{line}"), encoding="utf-8")
    return tree


def test_the_tests_of_every_method_and_kernel_pass(tree):
    tests = [f"tests/{name}" for name in CONTRACTS]
    command = [sys.executable, "-c", COMMANDS, "-vv", "-n0", "-p", "no:cacheprovider", "-k", CHOSEN, *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("[window]", "[0.6-window]", "[481-window]", "[53-row_gather]", "test_every_card_names"):
        assert re.search(rf"{re.escape(part)}.* PASSED", done.stdout), done.stdout


def test_published_timings_stay_fresh(tree):
    assert definitions_here().keys() < definitions(sources_on_disk(tree / "seerbench")).keys()


def test_the_legend_shows_the_title_on_the_card(tree, monkeypatch):
    (card,) = read_cards(tree / "baselines" / "window.py", "seerbench.baselines.window")
    monkeypatch.setattr(colors, "catalogue", lambda: {**registry.catalogue(), card.name: card})
    assert colors.display("window") == "Sliding window"
    assert colors.display("nobody") == "nobody"
