"""The portable block-sparse kernel in Triton's interpreter (fp16 and fp32) against the float64 reference.

The interpreter's bf16 is silently wrong, so bf16 is tested on a GPU only (tests/gpu).
"""

from dataclasses import replace

import pytest
import torch
from gpu.kernel_cases import INTERPRETED, LENGTHS, MASKS, build_mask, check_attention, draw, run_in_interpreter

from seerbench.core.problem import AttentionProblem
from seerbench.kernels.block_sparse import api as kernel
from seerbench.kernels.block_sparse import triton as block_sparse_triton

if not INTERPRETED:

    def test_kernel_in_the_interpreter():
        run_in_interpreter(__file__)

    def test_names_the_kernel_that_runs():
        case = AttentionProblem("cpu", "float32", 1, 4, 2, 64, 100)
        assert kernel.implementation(case) == "flex-cpu"
        small = replace(case, device="cuda", block_q=32, block_k=32)
        assert kernel.implementation(small) == "triton"  # too few rows for wgmma, on any GPU

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"dtype": "float32"}, "float32"),
            ({"head_dim": 80}, "80"),
            ({"block_q": 16}, "16"),
            ({"kv_heads": 3}, "split"),
        ],
    )
    def test_refuses_with_the_reason(change, word):
        case = {"device": "cuda", "dtype": "bfloat16", "batch": 1, "q_heads": 8, "kv_heads": 2, "head_dim": 64}
        assert kernel.refuses(AttentionProblem(**case, context=1000)) is None
        assert word in kernel.refuses(AttentionProblem(**{**case, **change}, context=1000))

else:

    def check(n, group, kind, dtype=torch.float16, head_dim=16, blocks=(64, 64), kv_heads=1, batch=1):
        q, k, v = draw(n, group * kv_heads, kv_heads, head_dim, dtype, batch=batch)
        mask = build_mask(kind, n, batch, group * kv_heads, *blocks)
        o = torch.full_like(q, torch.nan)
        lse = torch.full(q.shape[:3], torch.nan)
        block_sparse_triton.launch(q, k, v, mask, o, lse)
        check_attention(q, k, v, mask, o, lse)

    @pytest.mark.parametrize("n", LENGTHS)
    @pytest.mark.parametrize("kind", MASKS)
    def test_every_mask_at_every_length(n, kind):
        check(n, group=2 if n < 1000 else 1, kind=kind)

    @pytest.mark.parametrize("blocks", [(32, 32), (64, 64), (128, 64), (64, 128), (128, 128)])
    @pytest.mark.parametrize("kind", MASKS)
    def test_block_sizes(blocks, kind):
        check(330, group=1, kind=kind, blocks=blocks)

    @pytest.mark.parametrize("group", [1, 4, 8])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_grouped_heads_and_batch(group, dtype):
        check(130, group=group, kind="random", dtype=dtype, kv_heads=2, batch=2)

    @pytest.mark.parametrize("head_dim", [16, 32, 64, 128])
    def test_head_dims(head_dim):
        check(200, group=2, kind="random", head_dim=head_dim)

    def test_tensors_that_are_views():
        """Run on [B, N, H, D] projections seen as [B, H, N, D], which models pass."""
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in draw(130, 4, 2, 16, torch.float16))
        mask = build_mask("random", 130, 2, 4, 64, 64)
        o, lse = torch.full_like(q, torch.nan), torch.full(q.shape[:3], torch.nan)
        block_sparse_triton.launch(q, k, v, mask, o, lse)
        check_attention(q, k, v, mask, o, lse)
