"""Time the kernels at a few densities: `make bench`. conftest.py has the problem."""

import pytest
from conftest import CASE

from seerbench.baselines.dense import Dense
from seerbench.kernels.pooled.api import pooled_attention
from seerbench.measure.inputs import random_mask
from seerbench.methods.protocol import BlockSparse


def test_dense(timed, inputs):
    timed(lambda: Dense().attend(*inputs, None), sparsity=0.0)


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_block_sparse(timed, inputs, sparsity):
    mask = random_mask(*inputs[:2], sparsity, CASE, seed=0)
    timed(lambda: BlockSparse().attend(*inputs, mask), sparsity=1 - mask.density())


def test_pooled(timed, inputs):
    timed(lambda: pooled_attention(*inputs), sparsity=0.0)
