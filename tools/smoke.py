"""Run one small case of each kernel on a GPU, and check those that have a reference.

    python tools/smoke.py
    compute-sanitizer --tool memcheck python tools/smoke.py
    python tools/smoke.py hopper          (only this block-sparse forward: hopper or triton)

It is meant for compute-sanitizer, and as a first test of a new GPU or a new Triton.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "gpu"))
from kernel_cases import build_mask, check_attention, check_gradients, draw

from seerbench.core.rope import plain_rope
from seerbench.kernels.antidiagonal_mass.api import antidiagonal_mass
from seerbench.kernels.attn_gate import api as attn_gate
from seerbench.kernels.block_sparse import api as block_sparse
from seerbench.kernels.block_sparse import triton
from seerbench.kernels.index_lists import ascending_lists
from seerbench.kernels.pooled.api import pooled_attention
from seerbench.kernels.pooled.triton import two_passes
from seerbench.kernels.pooled_scores.api import pooled_scores
from seerbench.kernels.vertical_slash.api import tile_attention, vertical_slash_tiles


def forward(names: list[str]) -> None:
    """Check the block-sparse forwards of these names."""
    launches = {"triton": triton.launch}
    if torch.cuda.get_device_capability()[0] == 9:
        from seerbench.kernels.block_sparse import hopper  # Gluon, which only Hopper needs, is not in every Triton

        launches["hopper"] = hopper.launch
    for blocks in block_sparse.HOPPER_BLOCKS:
        for name, launch in launches.items():
            if names and name not in names:
                continue
            q, k, v = draw(300, 4, 2, 128, torch.bfloat16, "cuda", 1)
            mask = build_mask("random", 300, 1, 4, *blocks, "cuda")
            o, lse = torch.full_like(q, torch.nan), torch.full(q.shape[:3], torch.nan, device="cuda")
            launch(q, k, v, mask, o, lse)
            check_attention(q, k, v, mask, o, lse)
            print("forward", name, blocks, "ok")


def backward() -> None:
    """Check the gradients of block-sparse attention."""
    for blocks in block_sparse.HOPPER_BLOCKS:
        leaves = [x.requires_grad_() for x in draw(300, 4, 2, 128, torch.bfloat16, "cuda", 1)]
        mask = build_mask("random", 300, 1, 4, *blocks, "cuda")
        o = block_sparse.block_sparse_attention(*leaves, mask)
        do = torch.randn_like(o)
        check_gradients(*leaves, mask, do, torch.autograd.grad(o, leaves, do))
        print("backward", blocks, "ok")


@torch.no_grad()
def others() -> None:
    """Run the other kernels, so that a memory checker sees what they read and write."""
    q, k, v = draw(300, 4, 2, 128, torch.bfloat16, "cuda", 1)
    for block in (64, 128):
        pooled_attention(q, k, v, block)
        two_passes(q, k, v, block)
    weights = tuple(torch.randn(heads, 128 * pools, 128, device="cuda") for heads, pools in ((4, 1), (2, 3)))
    operators = (["avg"], ["max", "min", "avg"])
    tables = plain_rope(128)(torch.arange(5, device="cuda") * 64)
    for upper_triangle in (True, False):
        scores = attn_gate.gate_scores(q, k, weights, operators, tables, 64, upper_triangle)
        attn_gate.select_top_k(scores, 2, 300, 64)
        attn_gate.select_top_k(scores, 2, 300, 64, last_rows_dense=1)
        attn_gate.select_threshold(scores, 0.3, 300, 64)
    torch.cuda.synchronize()
    print("pooled attention and gate ok")
    ascending_lists(torch.ones(1, 4, 5, 5, dtype=torch.bool, device="cuda").tril())
    antidiagonal_mass(q, k, 64, 8)
    pooled_scores(q, k, 64)
    columns, diagonals = torch.rand(2, 1, 4, 300, device="cuda") < 0.1
    diagonals[..., 0] = True
    tile_attention(q, k, v, vertical_slash_tiles(columns, diagonals))
    torch.cuda.synchronize()
    print("the baselines' kernels ok")


if __name__ == "__main__":
    forward(sys.argv[1:])
    if not sys.argv[1:]:
        backward()
        others()
