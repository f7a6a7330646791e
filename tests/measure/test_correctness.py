"""Checks before timings: on few tokens a method is checked at a request that these can meet."""

import pytest

from seerbench.core.problem import AttentionProblem
from seerbench.errors import Refused
from seerbench.measure import correctness, inputs
from seerbench.methods.registry import create
from seerbench.methods.wrappers import variant


@pytest.fixture(scope="module")
def attention():
    return inputs.random_attention(AttentionProblem("cpu", "float32", 1, 2, 1, 16, 2048), 0)


def test_a_request_that_the_check_cannot_meet_is_checked_at_a_lower_one(attention):
    plain = create("streaming", sparsity=0.95, block=64)  # the check has 16 blocks
    wrapped = variant(create("random", sparsity=0.95, block=64), mean_correction=True)
    for method in (plain, wrapped):
        check = correctness.check_method(method, *attention)
        assert check is not None
        assert check.passed
        assert method.sparsity == 0.95
    assert wrapped.method.sparsity == 0.95


def test_an_input_that_is_checked_whole_keeps_its_request():
    short = inputs.random_attention(AttentionProblem("cpu", "float32", 1, 2, 1, 16, 512), 0)
    with pytest.raises(Refused, match=r"skips .* where 95\.0% was requested"):
        correctness.check_method(create("streaming", sparsity=0.95, block=64), *short)
