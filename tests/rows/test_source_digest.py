"""Tests of the source digest: edits that keep it, edits that change it, and published timings that are stale."""

import ast
import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seerbench.methods.registry import catalogue
from seerbench.paths import ROOT
from seerbench.rows import normal_form, source_digest, staleness
from seerbench.rows.source_digest import (
    UnknownCommit,
    changed_since,
    definitions,
    definitions_here,
    module_name,
    sources_at,
    sources_on_disk,
)
from seerbench.rows.staleness import stale

KERNEL = "kernels/attend.py"
SHARED = "seerbench/parts.py"
METHOD = "baselines/mine.py"
CATALOGUE = "seerbench/a_catalogue.py"
PROJECT = {
    "seerbench/__init__.py": "",
    "kernels/__init__.py": "",
    "baselines/__init__.py": "",
    KERNEL: '''"""A kernel."""
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from seerbench.parts import block_count

LOG2_E = tl.constexpr(1.44)
TILES = {64: (4, 2)}


@triton.jit
def _kernel(q, out, scale, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    score = tl.load(q + row * BLOCK) * scale * LOG2_E
    tl.store(out + row, tl.exp2(score))


def launch(q: Tensor, scale: float = 0.5, warps=4) -> Tensor:
    """Launch it."""
    if q.shape[0] < 1:
        raise ValueError(f"no rows in {q}")
    assert q.is_cuda, "not on a GPU"
    out = torch.empty_like(q)
    _kernel[(block_count(q.shape[0], 64),)](q, out, scale, BLOCK=64, num_warps=TILES[64][0])
    return torch.nn.functional.softmax(out, dim=-1)


def unrelated(x):
    return x
''',
    SHARED: '''"""Shared."""
from dataclasses import dataclass


def block_count(tokens, block):
    return -(-tokens // block)


@dataclass
class Mask:
    counts: int
    width: int = 3

    def total(self):
        return sum(count * self.width for count in self.counts)


class BlockSparse:
    def implementation(self, case):
        return "ours"

    def refuses(self, case):
        return None

    def attend(self, q, k, v, plan):
        # The kernel is imported when it runs.
        from seerbench.kernels import attend as kernel

        return kernel.launch(q, warps=8)
''',
    METHOD: '''"""A method."""
from seerbench.parts import BlockSparse, Mask
from seerbench.marks import register


@register("mine", cites="a paper")
class Mine(BlockSparse):
    """Mine."""

    sparsity = None

    def plan(self, q, k, layer):
        return Mask(counts=[1, 2])
''',
    CATALOGUE: """
SPARSE_KERNELS = {"block_sparse": "seerbench.parts:BlockSparse"}
""",
}


def of(folder, files):
    """Return the definitions of a project, whose files are first written into a folder."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return definitions(sources_on_disk(folder / "seerbench"))


def edited(*edits):
    """Return PROJECT after edits (file, old text, new text)."""
    files = dict(PROJECT)
    for name, old, new in edits:
        assert old in files[name], old
        files[name] = files[name].replace(old, new)
    return files


def moved(old, new, *edits):
    """Return PROJECT with one file renamed, after further edits."""
    files = edited(*edits)
    files[new] = files.pop(old)
    return files


CONSTANTS = "LOG2_E = tl.constexpr(1.44)\nTILES = {64: (4, 2)}\n"
SAME = {
    "comment": edited((SHARED, "# The kernel is imported when it runs.", "# Another.")),
    "docstring": edited((KERNEL, '"""Launch it."""', '"""Say more about it."""')),
    "no docstring": edited((METHOD, '    """Mine."""\n', "")),
    "annotation": edited((KERNEL, "q: Tensor, scale: float", "q, scale: int"), (KERNEL, "-> Tensor", "-> object")),
    "annotated variable": edited((KERNEL, "    out = torch", "    out: Tensor = torch")),
    "field's type": edited((SHARED, "counts: int", "counts: object")),
    "error message": edited((KERNEL, 'ValueError(f"no rows in {q}")', 'TypeError("no rows")')),
    "assertion's message": edited((KERNEL, '"not on a GPU"', '"another"')),
    "local variable": edited((KERNEL, "score", "value")),
    "argument": edited((SHARED, "tokens", "rows")),
    "comprehension's variable": edited((SHARED, "count * self.width for count in", "one * self.width for one in")),
    "function": edited((KERNEL, "_kernel", "_forward")),
    "function used elsewhere": edited((KERNEL, "launch", "run"), (SHARED, "kernel.launch", "kernel.run")),
    "constant's name": edited((KERNEL, "LOG2_E", "LOG2_OF_E")),
    "class": edited(*((name, "BlockSparse", "Sparse") for name in (SHARED, METHOD, CATALOGUE))),
    "alias": edited((KERNEL, "import triton.language as tl", "from triton import language as tl")),
    "another alias": edited(
        (KERNEL, "import torch\n", "import torch\nimport torch.nn.functional as F\n"),
        (KERNEL, "torch.nn.functional.softmax", "F.softmax"),
    ),
    "imported at the top": edited(
        (SHARED, "        from seerbench.kernels import attend as kernel\n", ""),
        (SHARED, "kernel.launch", "launch"),
        (SHARED, "from dataclasses", "from seerbench.kernels.attend import launch\nfrom dataclasses"),
    ),
    "file": moved(KERNEL, "kernels/other.py", (SHARED, "import attend as", "import other as")),
    "folder": moved(
        KERNEL, "kernels/attend/triton.py", (SHARED, "kernels import attend as", "kernels.attend import triton as")
    )
    | {"kernels/attend/__init__.py": ""},
    "folder of a method": moved(METHOD, "baselines/mine/method.py") | {"baselines/mine/__init__.py": ""},
    "kernels inside the package": {
        name if name.startswith("seerbench") else f"seerbench/{name}": text for name, text in PROJECT.items()
    },
    "split file": edited((KERNEL, CONSTANTS, "from seerbench.kernels.constants import LOG2_E, TILES\n"))
    | {"kernels/constants.py": "import triton.language as tl\n" + CONSTANTS},
    "moved function": edited(
        (SHARED, "def block_count(tokens, block):\n    return -(-tokens // block)\n", ""),
        (KERNEL, "from seerbench.parts import block_count", "from seerbench.counts import block_count"),
    )
    | {"seerbench/counts.py": "def block_count(tokens, block):\n    return -(-tokens // block)\n"},
    "re-export": edited((KERNEL, CONSTANTS, "from seerbench.kernels.shared import LOG2_E, TILES\n"))
    | {
        "kernels/shared/__init__.py": "from seerbench.kernels.shared.inner import LOG2_E, TILES\n",
        "kernels/shared/inner.py": "import triton.language as tl\n" + CONSTANTS,
    },
    "relative re-export": edited((KERNEL, CONSTANTS, "from .shared import LOG2_E, TILES\n"))
    | {
        "kernels/shared/__init__.py": "from .inner import LOG2_E, TILES\n",
        "kernels/shared/inner.py": "import triton.language as tl\n" + CONSTANTS,
    },
    "unrelated": edited((KERNEL, "    return x\n", "    return x + 1\n\n\ndef helper():\n    return 2\n")),
    "refuses": edited((SHARED, "        return None\n", "        return 'too large' if case else None\n")),
    "implementation": edited((SHARED, '"ours"', '"ours, renamed"')),
    "card": edited((METHOD, 'cites="a paper"', 'cites="another", fidelity="exact"')),
    "order of members": edited((SHARED, "    def refuses(self, case):\n        return None\n\n", ""))
    | {METHOD: PROJECT[METHOD].replace("    sparsity = None\n\n", "") + "\n    sparsity = None\n"},
    "base with defaults": edited(
        (
            SHARED,
            "class BlockSparse:\n",
            "class Method:\n    exact = None\n    name: str\n\n"
            "    def score(self, q):\n        return None\n\n    def layout(self, mask):\n        return mask\n\n"
            "    def plan(self, q, k, layer):\n"
            "        raise NotImplementedError\n\n\nclass BlockSparse(Method):\n",
        ),
    ),
}
DIFFERENT = {
    "constant": edited((KERNEL, "1.44", "1.45")),
    "tile": edited((KERNEL, "(4, 2)", "(8, 2)")),
    "operator": edited((KERNEL, "* scale * LOG2_E", "* scale + LOG2_E")),
    "default": edited((KERNEL, "scale: float = 0.5", "scale: float = 0.25")),
    "called function": edited((SHARED, "-(-tokens // block)", "tokens // block")),
    "another external function": edited((KERNEL, "softmax", "log_softmax")),
    "keyword": edited((KERNEL, "dim=-1", "axis=-1")),
    "keyword's value": edited((SHARED, "warps=8", "warps=16")),
    "string": edited((KERNEL, "dim=-1", "dim='last'")),
    "attribute": edited((KERNEL, "q.is_cuda", "q.is_cpu")),
    "constexpr": edited((KERNEL, "BLOCK: tl.constexpr", "BLOCK")),
    "decorator": edited((KERNEL, "@triton.jit", "@triton.jit(noinline=True)")),
    "condition": edited((KERNEL, "< 1", "< 2")),
    "exchanged variables": edited((KERNEL, "q, out, scale, BLOCK=64", "out, q, scale, BLOCK=64")),
    "another definition": edited((KERNEL, "num_warps=TILES[64][0]", "num_warps=LOG2_E")),
    "order of fields": edited((SHARED, "    counts: int\n    width: int", "    width: int\n    counts: int")),
    "field's default": edited((SHARED, "width: int = 3", "width: int = 4")),
    "overridden": edited((METHOD, "    def plan", "    def attend(self):\n        return None\n\n    def plan")),
    "class constant": edited((METHOD, "sparsity = None", "sparsity = 0.5")),
    "another base": edited((METHOD, "class Mine(BlockSparse)", "class Mine")),
}  # fmt: skip


@pytest.mark.parametrize("change", SAME)
def test_wording_names_and_places_do_not_count(tmp_path, change):
    before = of(tmp_path / "before", PROJECT)
    assert before.keys() == of(tmp_path / "after", SAME[change]).keys()
    assert {name.rpartition(".")[2] for name in before.values()} == {
        *("LOG2_E", "TILES", "_kernel", "launch", "block_count", "Mask", "BlockSparse", "Mine")
    }


@pytest.mark.parametrize("change", DIFFERENT)
def test_what_is_computed_counts(tmp_path, change):
    assert of(tmp_path / "before", PROJECT).keys() - of(tmp_path / "after", DIFFERENT[change]).keys()


def test_an_added_method_leaves_the_others_and_a_removed_one_does_not(tmp_path):
    second = PROJECT[METHOD].replace('"mine"', '"second"').replace("Mine", "Second").replace("[1, 2]", "[3]")
    one, two = of(tmp_path / "one", PROJECT), of(tmp_path / "two", PROJECT | {"baselines/second.py": second})
    assert one.keys() < two.keys()
    assert [two[digest] for digest in two.keys() - one.keys()] == ["seerbench.baselines.second.Second"]


def test_the_changed_definition_is_named_before_those_that_use_it(tmp_path):
    before, after = of(tmp_path / "before", PROJECT), of(tmp_path / "after", DIFFERENT["constant"])
    changed = [name for digest, name in before.items() if digest not in after]
    assert changed[:3] == [f"seerbench.kernels.attend.{name}" for name in ("LOG2_E", "_kernel", "launch")]
    assert set(changed[3:]) == {"seerbench.parts.BlockSparse", "seerbench.baselines.mine.Mine"}


CYCLE = """
def even(n):
    return n == 0 or odd(n - 1)


def odd(n):
    return n > 0 and even(n - 1)


def pooled_attention(q):
    return {call}(q)
"""


def test_a_cycle_is_told_by_what_it_computes_not_by_where_it_is_entered(tmp_path):
    files = {"seerbench/__init__.py": "", "kernels/pooled.py": CYCLE.format(call="even")}
    first = of(tmp_path / "first", files)
    assert len(first) == 3
    renamed = CYCLE.format(call="even").replace("even", "zeven").replace("odd", "aodd")
    assert first.keys() == of(tmp_path / "renamed", {**files, "kernels/pooled.py": renamed}).keys()
    entered = of(tmp_path / "entered", {**files, "kernels/pooled.py": CYCLE.format(call="odd")})
    assert len(first.keys() & entered.keys()) == 2  # the two definitions of the cycle
    changed = CYCLE.format(call="even").replace("n > 0", "n > 1")
    assert not first.keys() & of(tmp_path / "changed", {**files, "kernels/pooled.py": changed}).keys()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from("abcdefghij"), min_size=4, max_size=4, unique=True))
def test_any_renaming_of_local_names_is_the_same(names):
    text = """
def pooled_attention(w, x):
    y = [z * w for z in x if z]
    if (w := len(y)):
        for x, z in enumerate(y):
            y[x] = (lambda w=z: w + x)()
    return y, w, x
"""

    class Rename(ast.NodeTransformer):
        def visit_Name(self, node):
            return ast.Name(table.get(node.id, node.id), node.ctx)

        def visit_arg(self, node):
            return ast.arg(table[node.arg])

    table = dict(zip("wxyz", names))
    renamed = ast.unparse(ast.fix_missing_locations(Rename().visit(ast.parse(text))))
    assert definitions({"seerbench.a": text}).keys() == definitions({"seerbench.a": renamed}).keys()


def test_a_listed_renaming_of_a_member_is_the_same(tmp_path, monkeypatch):
    text = PROJECT[METHOD] + "\n    def attend(self, q, k, v, plan):\n        return plan.total(scale=2)\n"
    files = PROJECT | {METHOD: text}
    renamed = files | {
        METHOD: text.replace("total(scale", "summed(by"),
        SHARED: PROJECT[SHARED].replace("total", "summed"),
    }
    before, after = of(tmp_path / "before", files), of(tmp_path / "after", renamed)
    assert before.keys() != after.keys()
    monkeypatch.setattr(normal_form, "RENAMED", {"total": "summed", "scale": "by"})
    assert of(tmp_path / "before", files).keys() == after.keys()


def test_files_become_modules():
    names = [module_name(source_digest.PurePosixPath(name)) for name in (KERNEL, SHARED, "kernels/a/__init__.py")]
    assert names == ["seerbench.kernels.attend", "seerbench.parts", "seerbench.kernels.a"]


def test_a_commit_gives_what_its_files_give(tmp_path, monkeypatch):
    expected = of(tmp_path, PROJECT)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    git = ["env", "-u", "GIT_DIR", "git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    (tmp_path / KERNEL).write_text("")
    assert definitions(sources_at("HEAD", tmp_path)) == expected
    with pytest.raises(UnknownCommit, match="123456789"):
        sources_at("1234567890", tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UnknownCommit, match="installed"):
        sources_at("HEAD", tmp_path)


def test_rows_are_older_where_a_definition_is_gone(monkeypatch):
    here = definitions_here()
    assert changed_since("no such commit", source_digest.source_digest()) == []
    monkeypatch.setattr(source_digest, "definitions_at", lambda commit: dict(list(here.items())[:5]))
    assert changed_since("a", "another") == []
    assert changed_since("a", "another", dirty=True) == ["uncommitted changes"]
    assert changed_since("a", source_digest.digest_at("a"), dirty=True) == []
    monkeypatch.setattr(source_digest, "definitions_at", lambda commit: {**here, "0": "seerbench.gone"})
    assert changed_since("a", "another") == ["seerbench.gone"]
    with pytest.raises(UnknownCommit, match="commit"):
        changed_since(None, "another")


def test_this_tree():
    definitions_here.cache_clear()
    started = time.process_time()
    names = set(definitions_here().values())
    assert time.process_time() - started < 3  # half a second on an idle core
    assert {
        f"{card.module}.{card.attribute}" for card in catalogue().values() if "seerbench" in card.module
    } <= names
    last = {name.rpartition(".")[2] for name in names}
    assert {"AttnGate", "BlockSparseKernel", "FlashAttention4Kernel", "pooled_attention", "BlockMask"} <= last
    assert {"gate_scores", "select_threshold", "block_scores", "ascending_lists", "vertical_slash_tiles"} <= last
    hopper = [name for name in names if "hopper" in name]
    assert len(hopper) > 20
    # No module is passed as a value: the digest would then cover all of it, which is more than it must.
    assert [name for name in names if name.endswith(".*")] == []
    assert len(source_digest.source_digest()) == 16


def test_what_is_published_is_up_to_date():
    folders = sorted(path for path in (ROOT / "results" / "published").glob("*") if path.is_dir())
    assert folders
    problems = [problem for folder in folders for problem in stale(folder)]
    shallow = subprocess.run(
        ["git", "rev-parse", "--is-shallow-repository"], cwd=ROOT, capture_output=True, text=True
    )
    if shallow.stdout.strip() != "false":
        pytest.skip("this checkout has no history")
    assert problems == []


def test_stale_names_three_definitions(monkeypatch):
    folder = next(path for path in sorted((ROOT / "results" / "published").glob("*")) if path.is_dir())
    monkeypatch.setattr(staleness, "changed_since", lambda *_: ["a", "b", "c", "d", "e"])
    problems = stale(folder)
    assert problems
    assert all("older kernels; changed since: a, b, c and 2 more" in problem for problem in problems)
