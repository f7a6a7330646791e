"""The float64 reference equals SDPA, and query heads read the key/value head of their group."""

import pytest
import torch

from seerbench.core.block_mask import BlockMask
from seerbench.core.reference import reference_attention
from seerbench.kernels.block_sparse.api import block_sparse_attention
from seerbench.kernels.flex_attention import masked_attention


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_reference_is_sdpa(kv_heads):
    q = torch.randn(2, 4, 77, 16, dtype=torch.float64)
    k, v = torch.randn(2, 2, kv_heads, 77, 16, dtype=torch.float64)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    out, lse = reference_attention(q, k, v)
    assert torch.allclose(out, want, atol=1e-13)
    scores = q @ k.repeat_interleave(4 // kv_heads, 1).transpose(-1, -2) / 4
    scores = scores.masked_fill(~torch.ones(77, 77, dtype=torch.bool).tril(), -torch.inf)
    assert torch.allclose(lse, scores.logsumexp(-1))


def test_a_token_mask_serves_as_well_as_a_block_mask():
    q, k, v = torch.randn(1, 2, 40, 16), torch.randn(1, 1, 40, 16), torch.randn(1, 1, 40, 16)
    flags = torch.rand(1, 2, 3, 3) < 0.5
    mask = BlockMask.from_dense(flags, 40, 16, 16)
    for by_blocks, by_pairs in zip(
        reference_attention(q, k, v, mask), reference_attention(q, k, v, mask.to_token_mask()), strict=True
    ):
        assert torch.equal(by_blocks, by_pairs)


def test_gqa_maps_query_head_h_to_kv_head_h_over_group():
    """Check that query heads 2 and 3 of four read key/value head 1, which alone has values; 0 and 1 do not."""
    q, k = torch.randn(1, 4, 40, 16), torch.randn(1, 2, 40, 16)
    v = torch.zeros(1, 2, 40, 16)
    v[:, 1] = 1
    mask = BlockMask.from_dense(torch.ones(1, 4, 3, 3, dtype=torch.bool), 40, 16, 16)
    for out in (
        reference_attention(q, k, v, mask)[0],
        block_sparse_attention(q, k, v, mask),
        masked_attention(q, k, v, mask),
    ):
        assert out[:, :2].abs().max() == 0
        assert torch.allclose(out[:, 2:].double(), torch.ones(1, 2, 40, 16, dtype=torch.float64), atol=1e-6)
