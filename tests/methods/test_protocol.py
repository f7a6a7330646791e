"""The defaults of the method protocol: what a third party's method gets without writing it."""

import pytest
import torch

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.core.reference import reference_attention
from seerbench.methods.protocol import BlockSparse, Method, Plan, realised_sparsity

PROBLEM = AttentionProblem("cpu", "float32", 1, 4, 2, 16, 100, 16, 16)
LAYER = LayerContext()


class Nothing(Method):
    name = "nothing"


class HalfDense(Plan):
    def density(self):
        return 0.5


class Diagonal(BlockSparse):
    name = "diagonal"

    def plan(self, q, k, layer):
        n = -(-q.shape[2] // 16)
        return BlockMask.from_dense(torch.eye(n, dtype=torch.bool).expand(*q.shape[:2], n, n), q.shape[2], 16, 16)


@pytest.fixture
def qkv():
    return torch.randn(1, 4, 100, 16), torch.randn(1, 2, 100, 16), torch.randn(1, 2, 100, 16)


def test_a_method_without_hooks_refuses_nothing_and_can_nothing_else(qkv):
    method = Nothing()
    assert method.refuses(PROBLEM) is None
    assert method.implementation(PROBLEM) == "nothing"
    assert method.with_threshold_for(*qkv[:2], LAYER) is method
    assert method.score(*qkv[:2], LAYER) is None
    assert (method.sparsity, method.block, method.configuration, method.variant) == (None, None, None, None)
    assert not any(
        (
            method.corrects_skipped,
            method.takes_padding,
            method.takes_query_offset,
            method.decodes,
            method.takes_forced_blocks,
            method.takes_last_rows,
        )
    )


@pytest.mark.parametrize("call", ["plan", "attend", "select"])
def test_what_must_be_defined_names_the_class_and_the_hook(call, qkv):
    arguments = {"plan": (*qkv[:2], LAYER), "attend": (*qkv, None), "select": (qkv[0], 100)}[call]
    with pytest.raises(NotImplementedError, match=f"Nothing does not define {call}"):
        getattr(Nothing(), call)(*arguments)


def test_the_default_of_exact_is_attention_over_the_plan(qkv):
    method = Diagonal()
    plan = method.plan(*qkv[:2], LAYER)
    exact = method.exact(*qkv, plan, torch.float64)
    assert torch.equal(exact, reference_attention(*qkv, plan)[0])
    assert torch.equal(Nothing().exact(*qkv, None, torch.float64), reference_attention(*qkv)[0])


def test_a_plan_may_know_its_density_alone(qkv):
    plan = HalfDense()
    assert realised_sparsity(plan) == 0.5
    assert plan.flops(16) is plan.head_density() is plan.to_dense() is plan.to_token_mask() is None
    assert Nothing().exact(*qkv, plan, torch.float64) is None


def test_no_plan_is_dense():
    assert realised_sparsity(None) == 0.0
