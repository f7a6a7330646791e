"""Test that a method that refuses, is wrong or runs out of memory becomes a row and is not timed."""

import pandas as pd
import pytest
import torch

from measure.toy import QUICK, SMALL, NeverRuns, Refuses, frames
from seerbench.measure.sweeps import (
    kernel_sweep,
)
from seerbench.methods.protocol import BlockSparse
from seerbench.methods.registry import create


class Wrong(BlockSparse):
    """A kernel that skips nothing, so its output is not the requested attention; it counts its calls."""

    calls = 0

    def attend(self, q, k, v, plan):
        self.calls += 1
        return create("dense").attend(q, k, v, None)


class NotANumber(BlockSparse):
    def attend(self, q, k, v, plan):
        return torch.full_like(q, torch.nan)


class OutOfMemory(BlockSparse):
    def attend(self, q, k, v, plan):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")


@pytest.mark.parametrize("kernel", [Wrong(), NotANumber()])
def test_a_wrong_kernel_is_not_timed(kernel):
    cells, samples = frames(kernel_sweep(SMALL, [0.5], QUICK, "run", {"wrong": kernel}))
    row = cells.set_index("method").loc["wrong"]
    assert row.status == "failed"
    assert "reference" in row.reason
    assert not row.error_vs_oracle <= row.error_budget
    assert set(samples.method) == {"dense"}
    if isinstance(kernel, Wrong):
        assert kernel.calls == 1  # Only the check calls the kernel.


def test_a_refusal_and_a_full_memory_become_rows():
    kernels = {"no": Refuses(), "big": OutOfMemory()}
    cells, samples = frames(kernel_sweep(SMALL, [0.5], QUICK, "run", kernels))
    cells = cells.set_index("method")
    assert cells.loc["no", ["status", "reason"]].tolist() == ["refused", "takes no context of 500"]
    assert cells.loc["big", ["status", "reason"]].tolist() == ["out_of_memory", "tried to allocate 20 GiB"]
    assert pd.isna(cells.loc["no", "sparsity_realised"])
    assert set(samples.method) == {"dense"}


def test_any_other_error_is_not_swallowed():
    with pytest.raises(AssertionError, match="was run"):
        kernel_sweep(SMALL, [0.5], QUICK, "run", {"broken": NeverRuns()})


def test_cells_of_one_sweep_share_inputs_and_rounds_pair(uncompiled):
    _, samples = frames(kernel_sweep(SMALL, [0.5], QUICK, "run"))
    order = samples.pivot(index="round", columns="method", values="order")
    assert (order.sum(axis=1) == 1).all()  # Each round has the places 0 and 1.
    assert order.dense.nunique() == 2  # The order changes between rounds.
