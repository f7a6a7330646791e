"""seerbench compare: right kernels are timed, wrong ones are refused with the reason; rows, figure, exit codes."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from seerbench import errors
from seerbench.cli import app
from seerbench.compare import base_commit, diagnose, present
from seerbench.compare import check as compare_check
from seerbench.compare import load as compare_load
from seerbench.compare import run as compare_run
from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem
from seerbench.core.reference import reference_attention
from seerbench.measure.sampler import Timing
from seerbench.methods.protocol import BlockSparse, Plan
from seerbench.paths import ROOT
from seerbench.rows.store import Run

CASE = AttentionProblem("cpu", "float32", 1, 4, 2, 16, 0, 16, 16)
EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def _own_lock(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def example(name):
    return compare_load.load(str(EXAMPLES / name)).function


right = example("gather_attention.py")


def findings(kernel, case=CASE):
    return [finding for _, finding in compare_check.check_kernel(kernel, case) if finding]


def softmax(q, k, v, seen, scale=None, group=None):
    group = group or (lambda x: x.repeat_interleave(q.shape[1] // x.shape[1], 1))
    scores = q @ group(k).transpose(-1, -2) * (scale or q.shape[-1] ** -0.5)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0) @ group(v)


def not_causal(q, k, v, mask):
    n = mask.tokens
    return softmax(
        q, k, v, mask.to_dense().repeat_interleave(16, -2)[..., :n, :].repeat_interleave(16, -1)[..., :n]
    )


def wrong_head(q, k, v, mask):
    return softmax(q, k, v, mask.to_token_mask(), group=lambda x: x.repeat(1, q.shape[1] // x.shape[1], 1, 1))


def unscaled(q, k, v, mask):
    return softmax(q, k, v, mask.to_token_mask(), scale=1.0)


def coarse(q, k, v, mask):
    return reference_attention(q, k, v, mask, torch.bfloat16)[0].float()


def overflowing(q, k, v, mask):
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).exp() * mask.to_token_mask()
    return (weights @ v) / weights.sum(-1, keepdim=True).clamp(min=1e-30)


def one_batch(q, k, v, mask):
    return right(q[:1], k[:1], v[:1], mask).expand_as(q)


def unwritten(q, k, v, mask):
    out = torch.empty_like(q)
    out[:, :-1] = right(q, k, v, mask)[:, :-1]
    return out


def half(q, k, v, mask):
    return right(q, k, v, mask).half()


def in_place(q, k, v, mask):
    out = right(q, k, v, mask)
    q.mul_(2)
    return out


@pytest.mark.parametrize("case", [CASE, AttentionProblem("cpu", "float32", 1, 2, 2, 32, 0, 32, 32)])
def test_a_right_kernel_has_no_findings(case):
    assert findings(right, case) == []


@pytest.mark.parametrize(
    ("kernel", "guess"),
    [
        (example("wrong/ignores_mask.py"), "ignores the mask"),
        (example("wrong/tail_block.py"), "tail block"),
        (example("wrong/empty_row.py"), "NaN on a row without a block"),
        (not_causal, "not causal inside the diagonal block"),
        (wrong_head, "wrong key/value head"),
        (unscaled, "forgets to scale"),
        (coarse, "too coarse"),
        (overflowing, "overflows"),
        (one_batch, "a batch of one"),
        (unwritten, "unwritten"),
        (half, "shape and dtype"),
        (in_place, "overwrites its inputs"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_kernel_is_told_why(kernel, guess):
    first = findings(kernel)[0]
    assert guess in first.guess
    assert first.error > first.budget


def test_a_finding_says_where():
    """Only head 2, from position 32 on, is wrong."""

    def kernel(q, k, v, mask):
        out = right(q, k, v, mask)
        out[:, 2, 32:] += 1
        return out

    first = findings(kernel)[0]
    assert "head 2 of 4; query block 2-3 of 4, positions 32 to 63" in first.where


def test_what_is_recognised_is_told_alone():
    found = findings(example("wrong/ignores_mask.py"))
    suspected = replace(found[-1], guess=found[-1].trial.suspect, recognised=False)
    told = present.explain([found[0], suspected])
    assert told.count("guess") == 1
    assert "ignores the mask" in told
    assert present.explain([suspected]).count("guess") == 1


def test_padding_of_the_lists_is_recognised():
    def kernel(q, k, v, mask):
        return softmax(q, k, v, diagnose.token_mask(diagnose.with_padding(mask), mask))

    assert "padding of kv_indices" in findings(kernel)[0].guess


def test_an_exception_comes_through_with_its_trial():
    def kernel(q, k, v, mask):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError) as error:
        findings(kernel)
    assert "every block kept" in error.value.__notes__[0]


def test_poison_reaches_python_allocations_only_inside():
    before = torch.empty
    with compare_check.poisoned():
        assert torch.empty(3).isnan().all()
        assert torch.zeros(3).new_empty(2).isnan().all()
        assert torch.empty is not before
    assert torch.empty is before


METHOD = """
import torch
from seerbench.core.block_mask import BlockMask
from seerbench.methods.protocol import Method
from seerbench.methods.registry import register
from gather_attention import attention

@register("mine", cites="none")
class Mine(Method):
    \"\"\"Keeps everything.\"\"\"
    def __init__(self, sparsity=0.5, block=64):
        self.sparsity, self.block = sparsity, block
    def implementation(self, case):
        return "gather"
    def refuses(self, case):
        return None
    def plan(self, q, k, layer):
        n = -(-q.shape[2] // self.block)
        kept = torch.ones(*q.shape[:2], n, n, dtype=torch.bool)
        mask = BlockMask.from_dense(kept, q.shape[2], self.block, self.block)
        return CHANGE
    def attend(self, q, k, v, plan):
        return attention(q, k, v, plan)
"""


@pytest.mark.parametrize(
    ("change", "guess"),
    [
        ("mask", None),
        ("BlockMask(mask.kv_num_blocks, mask.kv_indices.flip(-1), q.shape[2], self.block, self.block)", "ascend"),
        ("BlockMask(mask.kv_num_blocks * 0 + n, torch.arange(n).int().expand_as(mask.kv_indices)"
         ".contiguous(), q.shape[2], self.block, self.block)", "future"),
    ],
)  # fmt: skip
def test_a_methods_plan_is_checked(tmp_path, change, guess):
    (tmp_path / "method.py").write_text(METHOD.replace("CHANGE", change))
    (tmp_path / "gather_attention.py").write_text((EXAMPLES / "gather_attention.py").read_text())
    cls = compare_load.load(str(tmp_path / "method.py"))
    found = [f for _, f in compare_check.check_method(lambda sparsity: cls(sparsity, 16), CASE) if f]
    assert (not found) if guess is None else guess in found[0].guess


def run(target, tmp_path, **options):
    return compare_run.run(
        target,
        **{"against": ["dense"], "contexts": [80], "sparsities": [0.5], "problem": CASE} | options,
        timing=Timing(rounds=10, cap_s=0),
        results=tmp_path / "rows",
        figures=tmp_path / "figures",
    )


def test_a_method_is_timed_with_its_plan(tmp_path):
    (tmp_path / "method.py").write_text(METHOD.replace("CHANGE", "mask"))
    outcome = run(str(tmp_path / "method.py"), tmp_path)
    assert outcome.findings == []
    assert set(outcome.frame.method) == {"dense", "mine"}
    assert outcome.frame.status.eq("measured").all()
    assert "total" in set(Run(tmp_path / "rows" / "compare").table("samples").stage)


def test_rows_summary_and_figure_are_written(tmp_path):
    outcome = run(str(EXAMPLES / "gather_attention.py"), tmp_path)
    assert outcome.findings == []
    assert {path.suffix for path in outcome.files} == {".parquet", ".svg", ".png", ".csv"}
    cells = Run(tmp_path / "rows" / "compare").table("cells").set_index("method")
    assert set(cells.status) == {"measured"}
    assert cells.source_digest["gather_attention"] != cells.source_digest["dense"]
    line = outcome.frame.set_index("method").loc["gather_attention"]
    assert line.low <= line.speedup <= line.high
    assert line.reference == "dense"
    assert "gather_attention" in present.table(outcome.frame)
    assert len(present.below(outcome.frame, "gather_attention", 1e6)) == 1
    assert present.below(outcome.frame, "gather_attention", 1e-6).empty
    unmeasured = outcome.frame.assign(speedup=float("nan"), high=float("nan"))
    assert len(present.below(unmeasured, "gather_attention", 1e-6)) == 1


def test_a_wrong_one_writes_nothing(tmp_path):
    outcome = run(str(EXAMPLES / "wrong" / "ignores_mask.py"), tmp_path)
    assert outcome.findings
    assert outcome.frame is None
    assert not (tmp_path / "rows").exists()


def test_a_file_can_be_a_baseline_and_names_must_differ(tmp_path):
    mine = str(EXAMPLES / "gather_attention.py")
    with pytest.raises(errors.CompareError, match="--name"):
        run(mine, tmp_path, against=[mine])
    outcome = run(mine, tmp_path, against=[mine], name="other")
    assert outcome.frame.reference[0] == "gather_attention"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("x = 1", "0 kernels and methods"),
        ("def a(q, k, v, mask): ...\ndef b(q, k, v, mask): ...", r"2 kernels and methods \(a, b\)"),
    ],
)
def test_a_file_without_one_kernel_says_so(tmp_path, content, text):
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(errors.CompareError, match=text):
        compare_load.load(str(path))


def test_the_base_commit_runs_its_own_code(tmp_path):
    """A repository whose kernel triples the output: what comes from there is tripled, here it is not."""
    tree = tmp_path / "tree"
    for folder in ("seerbench", "seerbench/core", "kernels", "kernels/block_sparse", "baselines"):
        (tree / folder).mkdir(parents=True)
        (tree / folder / "__init__.py").write_text("")
    for file in ("core/block_mask.py", "core/reference.py"):
        (tree / "seerbench" / file).write_text((ROOT / "seerbench" / file).read_text())
    (tree / "kernels" / "helper.py").write_text("TIMES = 3\n")
    (tree / "kernels" / "block_sparse" / "api.py").write_text(
        "from seerbench.core.reference import reference_attention\n\n\ndef refuses(case):\n    return None\n\n\n"
        "def block_sparse_attention(q, k, v, mask):\n    from seerbench.kernels.helper import TIMES\n\n"
        "    return TIMES * reference_attention(q, k, v, mask, q.dtype)[0]\n"
    )
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=tree, check=True)
    base = base_commit.base_kernel("HEAD", tree)
    q = torch.randn(1, 2, 32, 16)
    mask = BlockMask.from_dense(torch.ones(1, 2, 2, 2, dtype=torch.bool), 32, 16, 16)
    assert torch.allclose(base.attend(q, q, q, mask), 3 * reference_attention(q, q, q, mask, q.dtype)[0])
    with pytest.raises(errors.CompareError, match="takes a commit"):
        base_commit.base_kernel("no-such-commit", tree)


def test_exit_codes(tmp_path):
    def call(*arguments):
        common = ["--contexts", "64", "--sparsity", "0.5", "--block", "16", "--head-dim", "16", "--rounds", "10"]
        places = ["--device", "cpu", "--against", "dense", "--results", tmp_path, "--figures", tmp_path]
        return CliRunner().invoke(app, [*map(str, ("compare", *arguments, *common, *places))])

    wrong = call(EXAMPLES / "wrong" / "empty_row.py")
    assert wrong.exit_code == 3
    assert "guess  NaN on a row without a block" in wrong.stdout
    slow = call(EXAMPLES / "gather_attention.py", "--fail-below", "1000")
    assert slow.exit_code == 4, slow.stderr
    assert "1000.0x" in slow.stdout


def test_the_triton_example_is_right_in_the_interpreter():
    command = [sys.executable, "-c", CHECK_EXAMPLE, EXAMPLES / "triton_attention.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "([], 11)", done.stderr


CHECK_EXAMPLE = """
import sys
from seerbench.compare import load, run
from seerbench.core.problem import AttentionProblem
kernel = load.load(sys.argv[1])
print(run.check(kernel, AttentionProblem("cpu", "float32", 1, 4, 2, 16, 0, 16, 16), 0))
"""


@pytest.mark.parametrize(
    ("target", "options", "text"),
    [
        ("nowhere.py", {}, "no file .*nowhere.py"),
        ("examples/triton_attention.py", {}, "it needs a GPU"),
        (None, {}, "name a kernel file"),
        ("examples/gather_attention.py", {"sparsities": [1.5]}, "from 0 to below 1, not 1.5"),
        ("examples/gather_attention.py", {"contexts": [0]}, "counts of tokens, not 0"),
        ("examples/gather_attention.py", {"against": ["nope"]}, "no baseline 'nope'"),
        (
            "examples/gather_attention.py",
            {"problem": AttentionProblem("cpu", "float32", 1, 4, 3, 16, 0, 16, 16)},
            "do not split",
        ),
        (
            "examples/gather_attention.py",
            {"problem": AttentionProblem("cpu", "int3", 1, 4, 2, 16, 0, 16, 16)},
            "no dtype",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_line(target, options, text, tmp_path):
    with pytest.raises(errors.CompareError, match=text):
        run(target and str(ROOT / target), tmp_path, **options)


class Density(Plan):
    """A plan that can say its density alone."""

    def __init__(self, density):
        self.share = density

    def density(self):
        return self.share


class Pairs(Density):
    """A plan that can also say its pairs."""

    def __init__(self, density, pairs):
        self.share, self.pairs = density, pairs

    def to_token_mask(self):
        return self.pairs


class Opaque(BlockSparse):
    """Its plan says how dense it is and nothing else."""

    sparsity, error = 0.5, 0.0

    def __init__(self, sparsity):
        self.sparsity = sparsity

    def plan(self, q, k, layer):
        return Density(1 - self.sparsity)

    def attend(self, q, k, v, plan):
        return reference_attention(q, k, v, None, q.dtype)[0] + self.error


class WrongOpaque(Opaque):
    error = 1.0


class AlwaysSparse(Opaque):
    def plan(self, q, k, layer):
        return Density(0.5)


class Lines(Opaque):
    """A plan that is no BlockMask but can say its keys: every other token."""

    def plan(self, q, k, layer):
        seen = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
        seen &= (torch.arange(q.shape[2]) % 2 == 0) | torch.eye(q.shape[2], dtype=torch.bool)
        return Pairs(0.5, seen)


class RightLines(Lines):
    def attend(self, q, k, v, plan):
        return softmax(q, k, v, plan.to_token_mask())


@pytest.mark.parametrize(
    ("method", "findings", "judged"),
    [(Opaque, 0, 3), (WrongOpaque, 3, 3), (AlwaysSparse, 0, 0), (Lines, 3, 3), (RightLines, 0, 3)],
)
def test_a_plan_that_is_no_block_mask_is_checked_as_far_as_it_can_be(method, findings, judged):
    """Where nothing can be compared, no trial counts as passed."""
    found, count = compare_run.check(method, CASE, 0)
    assert (len(found), count) == (findings, judged)


def test_minferences_own_tiles_are_compared_with_the_oracle():
    found, judged = compare_run.check(
        compare_load.load("seerbench.baselines.minference.methods:MInference"), CASE, 0
    )
    assert (found, judged) == ([], 3)


def test_an_object_of_a_package_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "kernels.py").write_text(
        "import functools\ndef scaled(q, k, v, mask, scale): ...\nbest = functools.partial(scaled, scale=2)\n"
        "def renamed(query, key, value, block_mask): ...\nother = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert compare_load.load("mypackage.kernels:best").name == "best"
    assert compare_load.load("mypackage.kernels:renamed").function.__name__ == "renamed"
    for wrong in ("mypackage.kernels:other", "mypackage.kernels:scaled", "mypackage.nowhere:x"):
        with pytest.raises(errors.CompareError):
            compare_load.load(wrong)


def test_every_trial_of_a_kernel_counts():
    assert compare_run.check(compare_load.load(str(EXAMPLES / "gather_attention.py")), CASE, 0) == ([], 11)
