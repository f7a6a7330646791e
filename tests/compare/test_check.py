"""Right kernels and methods pass the trials, wrong ones get a finding that says where."""

import os
import subprocess
import sys

import pytest
import torch

from compare.kernels import CASE, EXAMPLES, METHOD, findings, right, softmax
from seerbench.compare import check as compare_check
from seerbench.compare import load as compare_load
from seerbench.compare import run as compare_run
from seerbench.core import top_k
from seerbench.core.problem import AttentionProblem
from seerbench.core.reference import reference_attention
from seerbench.devices import interpreter_refusal
from seerbench.kernels import flex_attention
from seerbench.methods.protocol import BlockSparse, Plan
from seerbench.paths import ROOT


@pytest.fixture(autouse=True)
def short_inputs_meet_no_request(monkeypatch):
    """Plan inputs of a few blocks as the rules say, since no number of whole blocks may be near the request."""
    monkeypatch.setattr(top_k, "MIN_BLOCKS", 64)


@pytest.mark.parametrize("case", [CASE, AttentionProblem("cpu", "float32", 1, 2, 2, 32, 0, 32, 32)])
def test_a_right_kernel_has_no_findings(case):
    assert findings(right, case) == []


def test_a_finding_says_where():
    """Find the place of an error that is only in head 2, from position 32 on."""

    def kernel(q, k, v, mask):
        out = right(q, k, v, mask)
        out[:, 2, 32:] += 1
        return out

    first = findings(kernel)[0]
    assert "head 2 of 4; query block 2-3 of 4, positions 32 to 63" in first.where


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


@pytest.mark.skipif(interpreter_refusal() is not None, reason=str(interpreter_refusal()))
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


class Density(Plan):
    """A plan with a density and nothing else."""

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
    """A method whose plan has a density and nothing else."""

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
    """A plan that is no BlockMask but returns its keys: every other token."""

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
    """Count no trial as passed if nothing can be compared."""
    found, count = compare_run.check(method, CASE, 0)
    assert (len(found), count) == (findings, judged)


def test_minferences_own_tiles_are_compared_with_the_oracle():
    found, judged = compare_run.check(
        compare_load.load("seerbench.baselines.minference.methods:MInference"), CASE, 0
    )
    assert (found, judged) == ([], 3)


def test_every_trial_of_a_kernel_counts():
    assert compare_run.check(compare_load.load(str(EXAMPLES / "gather_attention.py")), CASE, 0) == ([], 11)


class OpaquePlan(Plan):
    """A plan that says nothing of its pairs."""

    def density(self):
        return 0.5


@pytest.mark.parametrize("causal", [True, False])
def test_attention_to_later_keys_is_found_without_a_reference(causal):
    class Opaque(BlockSparse):
        name, sparsity, block = "opaque", 0.5, 16

        def plan(self, q, k, layer):
            return OpaquePlan()

        def attend(self, q, k, v, plan):
            group = q.shape[1] // k.shape[1]
            k, v = (x.repeat_interleave(group, 1) for x in (k, v))
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    found = [finding for _, finding in compare_check.check_method(lambda sparsity: Opaque(), CASE) if finding]
    assert bool(found) != causal
    assert all("looks into the future" in finding.guess for finding in found)


def test_plans_are_tried_where_half_of_the_blocks_can_be_kept(monkeypatch):
    """Refuse a plan of 5 blocks, of which none has half of them, and try one of 4 at a length beyond a block."""
    monkeypatch.undo()  # the rule for short inputs is the real one here
    monkeypatch.setattr(flex_attention, "flex_block_sparse", flex_attention.masked_attention)  # it would compile
    cls = compare_load.load(str(EXAMPLES / "pooled_top_k.py"))
    tried = [trial for trial, _ in compare_check.check_method(lambda sparsity: cls(sparsity, 16), CASE)]
    assert [trial.problem.context for trial in tried] == [64, 57, 9]
