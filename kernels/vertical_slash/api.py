"""MInference's vertical-slash attention: checks, choice of the kernels.

`vertical_slash_tiles` turns selected columns and diagonals into a TileMask, `tile_attention` runs attention over
it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seerbench.core.block_mask import block_count
from seerbench.core.problem import AttentionProblem
from seerbench.kernels.primitives import unit_stride
from seerbench.kernels.vertical_slash import convert, reference, triton
from seerbench.kernels.vertical_slash.tile_mask import TileMask


def implementation(problem: AttentionProblem) -> str:
    """Return the name of the kernel that runs `problem`, as it goes into the rows."""
    return "torch-gathered" if problem.device == "cpu" else "triton-tiles"


def refuses(problem: AttentionProblem) -> str | None:
    """Return why the kernel cannot run `problem`, or None."""
    if problem.q_heads % problem.kv_heads:
        return f"{problem.q_heads} query heads do not split over {problem.kv_heads} key/value heads"
    if problem.device == "cpu":
        return None
    if problem.dtype not in ("float16", "bfloat16"):
        return f"the Triton kernel takes float16 and bfloat16, not {problem.dtype}"
    if problem.head_dim not in (16, 32, 64, 128):
        return f"the Triton kernel takes head_dim 16, 32, 64 or 128, not {problem.head_dim}"
    if problem.block_q not in (16, 32, 64):
        return f"the Triton kernel takes tiles of 16, 32 or 64, not {problem.block_q}"
    return None


def vertical_slash_tiles(columns: Tensor, diagonals: Tensor, tile: int = 64) -> TileMask:
    """Return the tiles and columns that cover the selected columns and diagonals, bool [B, Hq, N] each.

    The result equals that of MInference's index conversion, entry for entry (reference.py says how it works).
    Diagonal 0 must be selected: every row's last range then reaches the diagonal, so a gathered column precedes all
    its queries. On a CPU a ValueError says so; on a GPU, which is not waited for, it is not checked.
    """
    tokens = columns.shape[-1]
    n = block_count(tokens, tile)
    if columns.is_cuda:
        return convert.tiles_of(*convert.scan(columns, diagonals), n, tokens, tile)
    if not diagonals[..., 0].all():
        raise ValueError("diagonal 0 must be selected for every head: without it a gathered column may be unseen")
    return reference.tiles_of(*reference.scan(columns, diagonals), n, tokens, tile)


def tile_attention(q: Tensor, k: Tensor, v: Tensor, mask: TileMask) -> Tensor:
    """Return attention over the mask's keys, [B, Hq, N, D] in q's dtype, for q [B, Hq, N, D], k, v [B, Hk, N, D].

    Forward only.
    """
    if not q.is_cuda:
        return reference.tile_attention(q, k, v, mask)
    q, k, v = map(unit_stride, (q, k, v))
    o = torch.empty_like(q)
    triton.launch(q, k, v, mask, o)
    return o
