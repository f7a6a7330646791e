"""Every block-sparse kernel of the list under one set of tests, on a CPU; tests/gpu runs them on a GPU."""

import pytest
import torch

from seerbench.core.block_mask import BlockMask, causal_blocks
from seerbench.core.problem import AttentionProblem
from seerbench.core.reference import reference_attention
from seerbench.core.tolerance import assert_no_worse_than_rounding
from seerbench.kernels import flex_attention
from seerbench.methods import block_sparse_kernels
from seerbench.methods.block_sparse_kernels import SPARSE_KERNELS, laid_out, sparse_kernel
from seerbench.methods.mask_kernels import FunctionKernel

BLOCK = 16


@pytest.fixture
def uncompiled(monkeypatch):
    """Replace compiled FlexAttention, which takes 20 s to compile, by masked SDPA."""
    monkeypatch.setattr(flex_attention, "flex_block_sparse", flex_attention.masked_attention)
    monkeypatch.setattr(flex_attention, "flex_attention", flex_attention.masked_attention)
    monkeypatch.setattr(BlockMask, "to_flex", lambda mask: mask)


@pytest.mark.parametrize("name", SPARSE_KERNELS)
@pytest.mark.parametrize("tokens", [BLOCK, 3 * BLOCK + 5])
def test_a_kernel_computes_attention_over_the_blocks(name, tokens, uncompiled):
    """Compare with float64: grouped heads, a partial last block, rows without blocks, and dense attention."""
    kernel = sparse_kernel(name)
    if reason := kernel.refuses(AttentionProblem("cpu", "float32", 2, 4, 2, 16, tokens, BLOCK, BLOCK)):
        pytest.skip(reason)
    generator = torch.Generator().manual_seed(tokens)
    q = torch.randn(2, 4, tokens, 16, generator=generator)
    k, v = torch.randn(2, 2, 2, tokens, 16, generator=generator)
    visible = causal_blocks(tokens, BLOCK, BLOCK)
    for chance in (0.5, 1.0):
        kept = (torch.rand(2, 4, *visible.shape, generator=generator) < chance) & visible
        mask = BlockMask.from_dense(kept, tokens, BLOCK, BLOCK)
        exact, rounded = reference_attention(q, k, v, mask)[0], reference_attention(q, k, v, mask, q.dtype)[0]
        assert_no_worse_than_rounding(kernel.attend(q, k, v, laid_out(kernel, mask)), exact, rounded)


def test_a_function_is_a_kernel_and_refuses_what_its_module_refuses(monkeypatch, tmp_path):
    (tmp_path / "no_kernel.py").write_text(
        "def attend(q, k, v, mask):\n    return v\n\n\ndef refuses(problem):\n    return 'never'\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(block_sparse_kernels.SPARSE_KERNELS, "mine", "no_kernel:attend")
    kernel = sparse_kernel("mine")
    problem = AttentionProblem("cpu", "float32", 1, 1, 1, 16, 16, BLOCK, BLOCK)
    assert isinstance(kernel, FunctionKernel)
    assert (kernel.implementation(problem), kernel.refuses(problem)) == ("mine", "never")
    assert kernel.attend(1, 2, 3, None) == 3
