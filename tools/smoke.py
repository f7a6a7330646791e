"""One small case of each kernel: for compute-sanitizer, and as a first sign of life."""

import sys
from pathlib import Path

import torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "gpu"))
from kernel_cases import build_mask, check_attention, check_gradients, draw

from seerbench.core.rope import plain_rope
from seerbench.kernels.antidiagonal_mass.api import antidiagonal_mass
from seerbench.kernels.attn_gate import pool as attn_gate_pool
from seerbench.kernels.attn_gate import project as attn_gate_project
from seerbench.kernels.attn_gate import score as attn_gate_score
from seerbench.kernels.attn_gate import select as attn_gate_select
from seerbench.kernels.block_sparse import api as block_sparse_api
from seerbench.kernels.block_sparse import hopper as block_sparse_hopper
from seerbench.kernels.block_sparse import triton as block_sparse_triton
from seerbench.kernels.index_lists import ascending_lists
from seerbench.kernels.pooled import api as pooled_api
from seerbench.kernels.pooled import triton as pooled_triton
from seerbench.kernels.pooled_scores.api import pooled_scores
from seerbench.kernels.vertical_slash.api import tile_attention, vertical_slash_tiles

for blocks in block_sparse_api.HOPPER_BLOCKS:
    for name, launch in (("triton", block_sparse_triton.launch), ("hopper", block_sparse_hopper.launch)):
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        q, k, v = draw(300, 4, 2, 128, torch.bfloat16, "cuda", 1)
        mask = build_mask("random", 300, 1, 4, *blocks, "cuda")
        o, lse = torch.full_like(q, torch.nan), torch.full(q.shape[:3], torch.nan, device="cuda")
        launch(q, k, v, mask, o, lse)
        check_attention(q, k, v, mask, o, lse)
        print(name, blocks, "ok")

q, k, v = draw(300, 4, 2, 128, torch.bfloat16, "cuda", 1)
for block in (64, 128):
    pooled_api.pooled_attention(q, k, v, block)
    pooled_triton.two_passes(q, k, v, block)
pools = attn_gate_pool.pool_blocks(q, 64), attn_gate_pool.pool_blocks(k, 64)
tables = plain_rope(128)(torch.arange(5, device="cuda") * 64)
projected = [
    attn_gate_project.project([(pool["avg"].contiguous(), torch.randn(h, 128, 128, device="cuda"))], tables)[0]
    for pool, h in zip(pools, (4, 2), strict=True)
]
scores = attn_gate_score.block_scores(*projected)
attn_gate_select.select_top_k(scores, 2, 300, 64)
attn_gate_select.select_top_k(
    attn_gate_score.block_scores(*projected, upper_triangle=False), 2, 300, 64, last_rows_dense=1
)
attn_gate_select.select_threshold(scores, 0.3, 300, 64)
torch.cuda.synchronize()
print("pooled and gate ok")

for blocks in block_sparse_api.HOPPER_BLOCKS:
    leaves = [x.requires_grad_() for x in draw(300, 4, 2, 128, torch.bfloat16, "cuda", 1)]
    mask = build_mask("random", 300, 1, 4, *blocks, "cuda")
    o = block_sparse_api.block_sparse_attention(*leaves, mask)
    do = torch.randn_like(o)
    check_gradients(*leaves, mask, do, torch.autograd.grad(o, leaves, do))
    print("backward", blocks, "ok")

ascending_lists(torch.ones(1, 4, 5, 5, dtype=torch.bool, device="cuda").tril())
antidiagonal_mass(q, k, 64, 8)
pooled_scores(q, k, 64)
columns, diagonals = torch.rand(2, 1, 4, 300, device="cuda") < 0.1
diagonals[..., 0] = True
tile_attention(q, k, v, vertical_slash_tiles(columns, diagonals))
torch.cuda.synchronize()
print("the baselines' kernels ok")
