"""FlexAttention and masked SDPA on a CPU against the float64 reference."""

import pytest
import torch

from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.problem import AttentionProblem
from seerbench.core.reference import reference_attention
from seerbench.core.tolerance import assert_no_worse_than_rounding
from seerbench.kernels import flex_attention
from seerbench.kernels.block_sparse.api import block_sparse_attention
from seerbench.kernels.flex_attention import masked_attention


def kinds(tokens, heads, block):
    n = block_count(tokens, block)
    generator = torch.Generator().manual_seed(tokens)
    random = torch.rand(1, heads, n, n, generator=generator) < 0.3
    return {
        "random": random,
        "full": torch.ones(1, heads, n, n, dtype=torch.bool),
        "diagonal": torch.eye(n, dtype=torch.bool).expand(1, heads, n, n),
        "empty rows": random & (torch.rand(1, heads, n, 1, generator=generator) < 0.5),
        "one far block": (torch.arange(n) == 0).expand(1, heads, n, n),
        "nothing": torch.zeros(1, heads, n, n, dtype=torch.bool),
    }


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 1000])
def test_flex_and_masked_attention_against_the_oracle(tokens):
    q = torch.randn(1, 4, tokens, 32)
    k, v = torch.randn(2, 1, 2, tokens, 32)
    for kind, dense in kinds(tokens, 4, 64).items():
        mask = BlockMask.from_dense(dense, tokens, 64, 64)
        exact, rounded = reference_attention(q, k, v, mask)[0], reference_attention(q, k, v, mask, torch.float32)[0]
        for kernel in (block_sparse_attention, masked_attention):
            assert_no_worse_than_rounding(kernel(q, k, v, mask), exact, rounded)
        if kind == "nothing":
            assert exact.abs().max() == 0


def test_sparse_attention_never_reads_a_skipped_block():
    """Check that NaN in every key block that no row lists does not reach the output."""
    q, k, v = torch.randn(3, 1, 2, 200, 16)
    dense = kinds(200, 2, 16)["diagonal"].clone()
    dense[..., 3] = False
    k[:, :, 48:64] = v[:, :, 48:64] = torch.nan
    out = block_sparse_attention(q, k, v, BlockMask.from_dense(dense, 200, 16, 16))
    assert out.isfinite().all()
    assert (out[:, :, 48:64] == 0).all()


def test_masked_attention_has_the_dense_gradient():
    q, k, v = (torch.randn(1, 2, 50, 16, dtype=torch.float64, requires_grad=True) for _ in range(3))
    full = BlockMask.from_dense(torch.ones(1, 2, 4, 4, dtype=torch.bool), 50, 16, 16)
    masked_attention(q, k, v, full).square().sum().backward()
    got = [x.grad.clone() for x in (q, k, v)]
    for x in (q, k, v):
        x.grad = None
    reference_attention(q, k, v)[0].square().sum().backward()
    assert all(torch.allclose(g, x.grad, atol=1e-12) for g, x in zip(got, (q, k, v), strict=True))


def test_refusals_have_reasons():
    case = AttentionProblem("cpu", "bfloat16", 1, 4, 2, 32, 128)
    assert "float32" in flex_attention.refuses(case)
    assert "do not split" in flex_attention.refuses(AttentionProblem("cpu", "float32", 1, 4, 3, 32, 128))
    assert flex_attention.refuses(AttentionProblem("cpu", "float32", 1, 4, 2, 32, 128)) is None
