"""Test the training-kernel sweep and the estimated memory of naive pooled attention."""

import pytest

from measure.toy import QUICK, SMALL, frames
from seerbench.core.problem import AttentionProblem
from seerbench.kernels.pooled.reference import naive_pooled_attention
from seerbench.measure.inputs import random_inputs
from seerbench.measure.memory import peak_mib
from seerbench.measure.sweeps import (
    training_kernel,
    training_kernel_sweep,
)


def test_training_kernel_sweep_and_the_naive_form_s_memory():
    case = AttentionProblem("cpu", "float32", batch=1, q_heads=4, kv_heads=2, head_dim=32, context=700)
    cells, samples = frames(training_kernel_sweep(case, QUICK, "run"))
    peak = cells.set_index("method").peak_mib
    assert set(cells.status) == {"measured"}
    assert (cells.error_vs_oracle <= cells.error_budget).all()
    assert peak["naive"] > 10 * peak["pooled"] > peak["dense"]
    assert set(samples.stage) == {"forward"}
    assert set(samples.method) == {"dense", "pooled", "naive"}


@pytest.mark.parametrize("context", [640, 1000])
def test_the_naive_form_needs_no_more_than_is_estimated(context):
    case = AttentionProblem("cpu", "float32", batch=1, q_heads=4, kv_heads=2, head_dim=32, context=context)
    q, k, v = random_inputs(case, 0)
    peak = peak_mib(lambda: naive_pooled_attention(q, k, v), "cpu")
    assert training_kernel.naive_over_memory(case, peak) is not None  # The estimate exceeds the peak.
    assert training_kernel.naive_over_memory(case, 1.1 * peak) is None  # It does so by at most 10%.


def test_the_naive_form_over_its_limit_is_refused():
    cells, samples = frames(training_kernel_sweep(SMALL, QUICK, "run", memory_limit_mib=10))
    row = cells.set_index("method").loc["naive"]
    assert row.status == "refused"
    assert "10 MiB" in row.reason
    assert set(samples.method) == {"dense", "pooled"}


@pytest.mark.parametrize("limit", [None, 1000])
def test_a_machine_with_little_free_memory_refuses_the_naive_form(monkeypatch, limit):
    monkeypatch.setattr(training_kernel, "available_mib", lambda: 4.0)
    cells, _ = frames(training_kernel_sweep(SMALL, QUICK, "run", limit))
    assert cells.set_index("method").status["naive"] == "refused"
