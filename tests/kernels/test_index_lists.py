"""Lists of set flags: the kernel in the interpreter against torch's sort."""

import pytest
import torch
from gpu.kernel_cases import INTERPRETED, run_in_interpreter

from seerbench.core.block_mask import BlockMask
from seerbench.kernels import index_lists

if not INTERPRETED:

    def test_kernel_in_the_interpreter():
        run_in_interpreter(__file__)

else:

    @pytest.mark.parametrize("chunk", [16, 1024])
    @pytest.mark.parametrize("chance", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("n", [1, 5, 33])
    def test_lists_are_those_of_the_sort(n, chance, chunk, monkeypatch):
        monkeypatch.setattr(index_lists, "CHUNK", chunk)
        flags = torch.rand(1, 2, n, n) < chance
        flags = flags & torch.ones(n, n).tril().bool()
        counts, places = index_lists.ascending_lists(flags)
        want = BlockMask.from_dense(flags, n, 1, 1)
        assert torch.equal(counts, want.kv_num_blocks)
        assert torch.equal(places, want.kv_indices)
