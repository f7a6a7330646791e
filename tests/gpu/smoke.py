"""One small case of each kernel: for compute-sanitizer, and as a first sign of life."""

import sys

import torch
from kernel_cases import build_mask, check_attention, check_gradients, draw

from seerbench.gate import pool_blocks
from seerbench.kernels import attn_gate, block_sparse_attention, block_sparse_hopper, pooled_attention
from seerbench.kernels.antidiagonal_mass import antidiagonal_mass
from seerbench.kernels.lists import ascending_lists
from seerbench.kernels.pooled_scores import log_sums
from seerbench.kernels.vertical_slash import tile_attention, vertical_slash_tiles
from seerbench.latency import plain_rope

for blocks in block_sparse_attention.HOPPER_BLOCKS:
    for name, launch in (("triton", block_sparse_attention.launch), ("hopper", block_sparse_hopper.launch)):
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
    pooled_attention.pooled_attention(q, k, v, block)
    pooled_attention.two_passes(q, k, v, block)
pools = attn_gate.pool_blocks(q, 64), attn_gate.pool_blocks(k, 64)
tables = plain_rope(128)(torch.arange(5, device="cuda") * 64)
projected = [
    attn_gate.project([(pool["avg"].contiguous(), torch.randn(h, 128, 128, device="cuda"))], tables)[0]
    for pool, h in zip(pools, (4, 2), strict=True)
]
scores = attn_gate.block_scores(*projected)
attn_gate.select_top_k(scores, 2, 300, 64)
attn_gate.select_top_k(attn_gate.block_scores(*projected, whole=False), 2, 300, 64, last_rows_dense=1)
attn_gate.select_threshold(scores, 0.3, 300, 64)
attn_gate.select_relative(scores, 0.3, 300, 64)
torch.cuda.synchronize()
print("pooled and gate ok")

for blocks in block_sparse_attention.HOPPER_BLOCKS:
    leaves = [x.requires_grad_() for x in draw(300, 4, 2, 128, torch.bfloat16, "cuda", 1)]
    mask = build_mask("random", 300, 1, 4, *blocks, "cuda")
    o = block_sparse_attention.block_sparse_attention(*leaves, mask)
    do = torch.randn_like(o)
    check_gradients(*leaves, mask, do, torch.autograd.grad(o, leaves, do))
    print("backward", blocks, "ok")

ascending_lists(torch.ones(1, 4, 5, 5, dtype=torch.bool, device="cuda").tril())
antidiagonal_mass(q, k, 64, 8)
log_sums(q, pool_blocks(k, 64)["avg"], 64)
columns, diagonals = torch.rand(2, 1, 4, 300, device="cuda") < 0.1
diagonals[..., 0] = True
tile_attention(q, k, v, vertical_slash_tiles(columns, diagonals))
torch.cuda.synchronize()
print("the baselines' kernels ok")
