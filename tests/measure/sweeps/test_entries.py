"""Test that methods become entries of cells."""

import pytest
import torch

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem
from seerbench.errors import MeasureError
from seerbench.measure.sweeps import (
    entries,
)
from seerbench.methods.registry import create


def test_flops_by_hand():
    case = AttentionProblem(
        "cpu", "float32", batch=2, q_heads=3, kv_heads=1, head_dim=16, context=200, block_q=64, block_k=64
    )
    blocks = 10  # 4 x 4 blocks, causal
    assert entries.flops(None, case) == 4 * 64 * 64 * 16 * blocks * 2 * 3
    kept = torch.eye(4, dtype=torch.bool).expand(2, 3, 4, 4)
    assert entries.flops(BlockMask.from_dense(kept, 200), case) == 4 * 64 * 64 * 16 * 4 * 2 * 3


def test_a_cell_a_sparsity_with_dense_in_each():
    dense, *sparse = (
        create("dense"),
        create("streaming", sparsity=0.9),
        create("random", sparsity=0.5),
        create("streaming", sparsity=0.5),
    )
    methods = [("dense", dense), ("s", sparse[0]), ("r", sparse[1]), ("s", sparse[2])]
    cells = entries.by_sparsity(methods)
    assert {key: list(group) for key, group in cells.items()} == {0.5: ["dense", "r", "s"], 0.9: ["dense", "s"]}
    assert entries.by_sparsity(methods[:1]) == {None: {"dense": dense}}
    own = ("x", create("xattention"))
    cells = entries.by_sparsity([*methods, own])
    assert {key: list(group) for key, group in cells.items()} == {
        None: ["dense", "x"],
        0.5: ["dense", "r", "s"],
        0.9: ["dense", "s"],
    }
    with pytest.raises(MeasureError, match="same name"):
        entries.by_sparsity([*methods, ("r", sparse[2])])
    cells = entries.by_sparsity([*methods, ("flex", create("flex"))])  # in one cell only
    assert [list(group) for group in cells.values()] == [["dense", "flex", "r", "s"], ["dense", "s"]]
