"""AttnGate's plan on a GPU: pool Q and K, score the blocks, list the chosen ones as a BlockMask.

    pool     max, min and mean over each block of tokens, in one pass over the tensor (pool.py)
    project  one linear layer per head, then RoPE at the block's first token; fp32 until both are done (project.py)
    score    Z[I, J] = <q_I, k_J> / sqrt(D) for J <= I, else -inf (score.py)
    select   top-k, or a threshold on softmax(Z), straight from scores to int32 lists: no sort, no n x n mask and no
             scatter in between (select.py)

Paper   SeerAttention (arXiv:2410.13276), sections 3.1 and 3.2.
Oracle  plain torch: reference.pool_blocks, seerbench.methods.gate.AttnGate and seerbench.core.top_k. Ties go to the
        lower index there and here, so lists are equal entry for entry.

A short plan costs the host more time than the GPU, so a plan is four launches: Q and K share one launch of `pool`
and one of `project`. The functions here take CUDA tensors; seerbench.methods chooses between them and torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from seerbench.core.block_mask import block_count
from seerbench.core.problem import AttentionProblem
from seerbench.errors import KernelError
from seerbench.kernels.attn_gate.pool import pool_side_by_side
from seerbench.kernels.attn_gate.project import project
from seerbench.kernels.attn_gate.score import block_scores
from seerbench.kernels.attn_gate.select import select_threshold, select_top_k
from seerbench.kernels.checks import check_on_gpu, check_tensors, forward_only, raise_refusal, triton_refuses

__all__ = ["gate_scores", "select_threshold", "select_top_k"]


def gate_scores(
    q: Tensor,
    k: Tensor,
    weights: tuple[Tensor | None, Tensor],
    operators: Sequence[Sequence[str]],
    tables: tuple[Tensor, Tensor] | None,
    block: int,
    upper_triangle: bool = True,
) -> Tensor:
    """Return a gate's scores, fp32 [B, Hq, n, n], n = ceil(N / block).

    Args:
        q: [B, Hq, N, D], before RoPE if the gate rotates.
        k: [B, Hk, N, D], before RoPE if the gate rotates.
        weights: the linear layers of Q (None: Q is not projected) and of K, as `project` takes them.
        operators: the pools of Q and of K, from "max", "min" and "avg", in that order.
        tables: cos and sin [n, D] at the blocks' first tokens, or None for a gate without RoPE.
        block: tokens per block.
        upper_triangle: write -inf above the diagonal. If False those entries are undefined; `select_top_k` and
            `select_threshold` do not read them.

    Raises:
        KernelError: the tensors do not fit together, or the kernels do not run them; or in the backward pass.
    """
    check_tensors(q, k)
    check_on_gpu(q)
    raise_refusal(triton_refuses(AttentionProblem.of(q, k, block, block)))
    for name, x, weight, pooling in zip(("q", "k"), (q, k), weights, operators, strict=True):
        _check_layer(name, q, x, weight, pooling)
    for table in tables or ():
        shape = [block_count(q.shape[2], block), q.shape[3]]
        if list(table.shape) != shape or table.device != q.device:
            raise KernelError(
                f"cos and sin are {shape} on {q.device}, not {list(table.shape)} on {table.device}; one row per "
                "block"
            )
    pools = pool_side_by_side(list(zip((q, k), operators, strict=True)), block)
    projected = project(list(zip(pools, weights, strict=True)), tables)
    scores = block_scores(*projected, upper_triangle=upper_triangle)
    return forward_only("the gate's kernels", (q, k, *weights), scores)[0]


def _check_layer(name: str, q: Tensor, x: Tensor, weight: Tensor | None, operators: Sequence[str]) -> None:
    """Check that a linear layer [H, pools * D, D] takes the pools of x and gives as many heads as x or q has."""
    width, head_dim = len(operators) * x.shape[3], x.shape[3]
    if weight is None:
        if len(operators) != 1:
            raise KernelError(f"{name} is not projected, so it takes one pool, not {list(operators)}")
        return
    heads = sorted({x.shape[1], q.shape[1]})
    if list(weight.shape) not in [[h, width, head_dim] for h in heads] or weight.device != q.device:
        raise KernelError(
            f"the layer of {name} is [{' or '.join(map(str, heads))}, {width}, {head_dim}] on {q.device}, not "
            f"{list(weight.shape)} on {weight.device}"
        )
