"""Block-sparse FlashAttention: softmax attention over the key blocks that a BlockMask lists.

    O[i] = sum_{j seen by i} softmax_j(q_i . k_j / sqrt(D)) v_j,   seen = listed block and j <= i

Paper   SeerAttention (arXiv:2410.13276), section 3.3: a FlashAttention that visits the chosen blocks only.
Oracle  seerbench.attention.oracle, float64.
Here    the launcher: FlexAttention on every device so far (flex_attention.py); the Triton kernel for GPUs
        goes here.
"""

from __future__ import annotations

from torch import Tensor

from seerbench.attention import BlockMask, Case
from seerbench.kernels import flex_attention


def implementation(device: str) -> str:
    """The name of the kernel that runs on `device` ("cpu" or "cuda"); it goes into the rows."""
    return f"flex-{device}"


def refuses(case: Case) -> str | None:
    """Why the kernel cannot run `case`, or None."""
    return flex_attention.refuses(case)


def block_sparse_attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """q [B, Hq, N, D], k and v [B, Hk, N, D] -> [B, Hq, N, D] in q's dtype. Forward only.

    Cost is proportional to the blocks kept. Rows without a block give zeros.
    """
    return flex_attention.flex_block_sparse(q, k, v, mask)
