"""Test that each cell of the kernel sweep has every kernel, block size and kind of mask."""

from dataclasses import replace

import pytest
import torch

from measure.toy import QUICK, SMALL, frames
from seerbench.core.problem import AttentionProblem
from seerbench.kernels import flex_attention
from seerbench.measure.sweeps import authors_kernel_sweep, kernel_sweep
from seerbench.methods.protocol import BlockSparse
from seerbench.methods.registry import create

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_kernel_sweep(device):
    dtype = "float32" if device == "cpu" else "bfloat16"
    case = AttentionProblem(
        device, dtype, batch=1, q_heads=4, kv_heads=2, head_dim=32, context=1100
    )  # The context is longer than a check.
    cells, samples = frames(kernel_sweep(case, [0.5, 0.9], QUICK, "run"))
    assert list(cells.cell) == ["kernel-1100-0.50"] * 2 + ["kernel-1100-0.90"] * 2
    assert list(cells.method) == ["dense", "block_sparse"] * 2
    assert set(cells.status) == {"measured"}
    assert (cells.error_vs_oracle <= cells.error_budget).all()
    assert (cells.peak_mib >= 1100 * 4 * 32 * (4 if device == "cpu" else 2) / 2**20).all()  # the output at least
    dense, sparse = (cells[cells.method == name] for name in ("dense", "block_sparse"))
    assert set(dense["mask"]) == {"dense"}
    assert dense.sparsity_requested.isna().all()
    assert set(sparse["mask"]) == {"random"}
    assert list(sparse.sparsity_requested) == [0.5, 0.9]
    assert sparse.sparsity_realised.to_numpy() == pytest.approx([0.5, 0.9], abs=0.08)
    kept = 1 - sparse.sparsity_realised.to_numpy()
    assert sparse.flops.to_numpy() == pytest.approx(kept * dense.flops.to_numpy())
    counts = samples.groupby(["cell", "method", "stage"]).ms.agg(["count", "min"])
    assert len(counts) == 4
    assert (counts["count"] == 10).all()
    assert (counts["min"] > 0).all()


class LaidOut(BlockSparse):
    """A kernel with a layout of its own for masks."""

    def layout(self, mask):
        return [mask]

    def attend(self, q, k, v, plan):
        return super().attend(q, k, v, plan[0])


def test_a_cell_holds_every_dense_kernel_block_and_kind_of_mask(uncompiled):
    kernels, dense = {"block_sparse": BlockSparse(), "mine": LaidOut()}, {"other": create("dense")}
    kinds = ("random", "gate-shaped")
    cells, samples = frames(kernel_sweep(SMALL, [0.5], QUICK, "run", kernels, dense, (64, 128), kinds))
    cells = cells.set_index("method")
    assert set(cells.status) == {"measured"}
    assert set(samples.method) == set(cells.index)
    names = [name + block + kind for block in ("", "-128") for kind in ("", "-gate-shaped") for name in kernels]
    assert list(cells.index) == ["dense", "other", *names]
    assert cells.block_k["mine"] == 64
    assert cells.block_k["mine-128-gate-shaped"] == 128
    assert cells["mask"]["mine-128-gate-shaped"] == "gate-shaped"
    assert cells.sparsity_realised["block_sparse"] == cells.sparsity_realised["mine"]


def test_the_authors_cell_has_their_shape_and_mask(uncompiled, monkeypatch):
    monkeypatch.setattr(flex_attention, "refuses", lambda problem: None)  # FlexAttention has no float16 on a CPU
    case = replace(SMALL, context=1500)  # at fewer blocks, rounding down in every row would miss the request
    cells, samples = frames(authors_kernel_sweep(case, [0.5], QUICK, "run"))
    assert list(cells.sweep) == ["authors_kernel"] * 2
    assert list(cells.method) == ["dense", "block_sparse"]
    assert list(cells["mask"]) == ["dense", "authors"]
    assert set(cells.status) == {"measured"}
    assert set(cells.dtype) == {"float16"}
    assert (cells.kv_heads == SMALL.q_heads).all()
    assert set(samples.method) == {"dense", "block_sparse"}
