"""Score the mean key of each block for each block of queries (FlashPrefill): checks, choice of the kernel.

triton.py defines the score, reference.py computes it in plain torch.
"""

from __future__ import annotations

from torch import Tensor

from seerbench.core.problem import AttentionProblem
from seerbench.errors import KernelError
from seerbench.kernels.attn_gate import pool
from seerbench.kernels.checks import check_on_gpu, check_tensors, forward_only, raise_refusal, triton_refuses
from seerbench.kernels.pooled_scores import reference, triton


def pooled_scores(q: Tensor, k: Tensor, block: int, from_first: bool = False) -> Tensor:
    """Return the score of each block, fp32 [B, Hq, n, n], -inf where no query sees it.

    Differentiable on a CPU only.

    Args:
        q: queries [B, Hq, N, D].
        k: keys [B, Hk, N, D].
        block: tokens per block; n = ceil(N / block).
        from_first: whether a query sees a block from the block's first key on, and not only from its last.

    Raises:
        KernelError: q and k do not fit together; on a GPU also if the kernel does not run them, or in the backward
            pass.
    """
    check_tensors(q, k)
    if block < 1:
        raise KernelError(f"a block has at least one token, not {block}")
    if not q.is_cuda:
        return reference.pooled_scores(q, k, block, from_first)
    check_on_gpu(q)
    raise_refusal(triton_refuses(AttentionProblem.of(q, k, block, block)))
    if block not in triton.BLOCKS:
        raise KernelError(f"the Triton kernel takes blocks of {triton.BLOCKS}, not {block}")
    scores = triton.pooled_scores(q, pool.pool_blocks(k, block, ["avg"])["avg"], block, from_first)
    return forward_only("pooled_scores", (q, k), scores)[0]
