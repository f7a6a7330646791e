"""CPU kernels at a few densities, for eyes and regressions: `make bench`.

This guards, it does not measure: methods are not interleaved here and pytest-benchmark times the host
clock. Numbers for a figure come from seerbench/latency.py. CPU calls return when they are done, so no
further synchronisation is needed; the first call, which compiles, is a warm-up round.
"""

import pytest
import torch

from seerbench.attention import BlockSparse, Case
from seerbench.baselines.dense import Dense
from seerbench.kernels.pooled_attention import pooled_attention
from seerbench.latency import random_inputs, random_mask

CASE = Case("cpu", "float32", batch=1, q_heads=4, kv_heads=2, head_dim=64, context=2048)


@pytest.fixture(scope="module")
def inputs():
    return random_inputs(CASE, seed=0)


def run(benchmark, call, **extra):
    benchmark.extra_info.update(vars(CASE) | extra)
    with torch.no_grad():
        benchmark.pedantic(call, rounds=10, warmup_rounds=2)


def test_dense(benchmark, inputs):
    run(benchmark, lambda: Dense().attend(*inputs, None), sparsity=0.0)


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_block_sparse(benchmark, inputs, sparsity):
    mask = random_mask(*inputs[:2], sparsity, CASE, seed=0)
    run(benchmark, lambda: BlockSparse().attend(*inputs, mask), sparsity=1 - mask.density())


def test_pooled(benchmark, inputs):
    run(benchmark, lambda: pooled_attention(*inputs), sparsity=0.0)
