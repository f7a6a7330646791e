"""MInference's vertical-slash attention: checks, choice of the kernels.

`vertical_slash_tiles` turns selected columns and diagonals into a TileMask, `tile_attention` runs attention over
it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seerbench.core.block_mask import block_count
from seerbench.core.problem import AttentionProblem
from seerbench.errors import KernelError
from seerbench.kernels.checks import (
    check_lists,
    check_on_gpu,
    check_tensors,
    forward_only,
    raise_refusal,
    triton_refuses,
)
from seerbench.kernels.primitives import addressable
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
    if reason := triton_refuses(problem):
        return reason
    if problem.block_q not in (16, 32, 64):
        return f"the Triton kernel takes tiles of 16, 32 or 64, not {problem.block_q}"
    return None


def vertical_slash_tiles(columns: Tensor, diagonals: Tensor, tile: int = 64) -> TileMask:
    """Return the tiles and columns that cover the selected columns and diagonals, bool [B, Hq, N] each.

    The result equals that of MInference's index conversion, entry for entry (reference.py says how it works).
    Diagonal 0 must be selected: every row's last range then reaches the diagonal, so a gathered column precedes all
    its queries.

    Raises:
        KernelError: the flags differ in shape or device or are not bool, or a head does not select diagonal 0.
    """
    for flags in (columns, diagonals):
        if flags.dtype != torch.bool or flags.dim() != 3 or not flags.numel():
            raise KernelError(f"columns and diagonals are bool [B, Hq, N], not {flags.dtype} {list(flags.shape)}")
    if columns.shape != diagonals.shape or columns.device != diagonals.device:
        raise KernelError(
            f"columns and diagonals must agree; they are {list(columns.shape)} on {columns.device} and "
            f"{list(diagonals.shape)} on {diagonals.device}"
        )
    if tile < 1:
        raise KernelError(f"a tile has at least one token, not {tile}")
    tokens = columns.shape[-1]
    n = block_count(tokens, tile)
    if columns.is_cuda:
        check_on_gpu(columns)
        return convert.tiles_of(*convert.scan(columns, diagonals), n, tokens, tile)
    return reference.tiles_of(*reference.scan(columns, diagonals), n, tokens, tile)


def tile_attention(q: Tensor, k: Tensor, v: Tensor, mask: TileMask) -> Tensor:
    """Return attention over the mask's keys, [B, Hq, N, D] in q's dtype, for q [B, Hq, N, D], k, v [B, Hk, N, D].

    Differentiable on a CPU only.

    Raises:
        KernelError: the tensors and the mask do not fit together; on a GPU also if the kernel does not run them, or
            in the backward pass.
    """
    inputs = (q, k, v)
    check_tensors(q, k, v)
    if not isinstance(mask, TileMask):
        raise KernelError(f"vertical-slash attention takes a TileMask, not {type(mask).__name__}")
    check_lists(q, mask.tile_counts, mask.tokens)
    raise_refusal(refuses(AttentionProblem.of(q, k, mask.tile, mask.tile)))
    if not q.is_cuda:
        return reference.tile_attention(q, k, v, mask)
    check_on_gpu(q)
    q, k, v = map(addressable, inputs)
    o = torch.empty_like(q)
    triton.launch(q, k, v, mask, o)
    return forward_only("vertical-slash attention", inputs, o)[0]
