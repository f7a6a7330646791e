"""Block masks of any block size for the tools, made by the generators of seerbench.measure.inputs."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.problem import AttentionProblem
from seerbench.measure.inputs import MASK_KINDS


def block_mask(problem: AttentionProblem, q: Tensor, k: Tensor, sparsity: float, kind: str = "random") -> BlockMask:
    """Return a mask of the problem's blocks; kind: a name in MASK_KINDS.

    The generators make square blocks. A mask of 128 x 64 consists of every second row of one of 64 x 64. Raises
    ValueError if block_q is not a multiple of block_k.
    """
    block = problem.block_k
    if problem.block_q % block:
        raise ValueError(f"block_q must be a multiple of block_k, not {problem.block_q} x {block}")
    square = MASK_KINDS[kind](q, k, sparsity, dataclasses.replace(problem, block_q=block), 1)
    if problem.block_q == block:
        return square
    rows, step = block_count(problem.context, problem.block_q), problem.block_q // block
    last = torch.arange(1, rows + 1, device=q.device) * step - 1  # the last of the rows that become one
    kept = square.to_dense()[..., last.clamp(max=block_count(problem.context, block) - 1), :]
    return BlockMask.from_dense(kept, problem.context, problem.block_q, block)
