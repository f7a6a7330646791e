"""Fixtures of the benchmarks: the problem, its inputs, and a benchmark that waits for the GPU.

The suite guards against regressions (`--benchmark-compare-fail=median:10%`). It does not produce results: methods
are not interleaved, and pytest-benchmark reads the host's clock. Numbers for a figure come from `seerbench
latency`.
"""

import warnings

import pytest
import torch

from seerbench.core.problem import AttentionProblem
from seerbench.measure.inputs import random_inputs
from seerbench.measure.load import LoadMeter

CASE = (
    AttentionProblem("cuda", "bfloat16", batch=1, q_heads=32, kv_heads=8, head_dim=128, context=8192)
    if torch.cuda.is_available()
    else AttentionProblem("cpu", "float32", batch=1, q_heads=4, kv_heads=2, head_dim=64, context=2048)
)


@pytest.fixture(scope="session")
def inputs():
    return random_inputs(CASE, seed=0)


@pytest.fixture
def timed(benchmark):
    """Return timed(call, sparsity): ten rounds, each until the GPU is done, after a warm-up that compiles."""

    def run(call, sparsity):
        benchmark.extra_info.update(vars(CASE) | {"sparsity": sparsity})
        meter = LoadMeter(CASE.device)

        def finished():
            call()
            if CASE.device == "cuda":
                torch.cuda.synchronize()

        with torch.no_grad():
            benchmark.pedantic(finished, rounds=10, warmup_rounds=2, setup=meter.observe)
        load = meter.load()
        benchmark.extra_info.update(load.columns())
        disturbance = load.disturbance(CASE.device)
        if disturbance:
            warnings.warn(f"this machine is busy: {disturbance}; the time says little", stacklevel=2)

    return run
