"""Selection on a CPU is that of the references. tests/kernels and tests/gpu compare the kernels with them."""

import torch

from seerbench.core import top_k
from seerbench.core.block_mask import BlockMask, causal_blocks
from seerbench.methods import block_selection


def same(mask, expected):
    for name in ("kv_num_blocks", "kv_indices"):
        assert torch.equal(getattr(mask, name), getattr(expected, name))


def test_a_cpu_runs_the_references():
    hidden = ~causal_blocks(9, 1, 1)
    scores = torch.randn(1, 2, 9, 9).masked_fill(hidden, -torch.inf)
    for name, argument in (("select_top_k", 0.7), ("select_threshold", 0.2), ("select_budget", 0.7)):
        same(
            getattr(block_selection, name)(scores, argument, 9 * 16, 16),
            getattr(top_k, name)(scores, argument, 9 * 16, 16),
        )


def test_flags_above_the_diagonal_are_dropped():
    flags = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    mask = block_selection.mask_from_flags(flags, 60, 16, 16)
    same(mask, BlockMask.from_dense(flags, 60, 16, 16))
    assert mask.kv_num_blocks[0, 0].tolist() == [1, 2, 3, 4]
