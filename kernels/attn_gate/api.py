"""AttnGate's plan on a GPU: pool Q and K, score the blocks, write the chosen ones down as a BlockMask.

    pool    max, min and mean over each block of tokens, all three in one pass over the tensor
    project a linear layer a head and RoPE at the block's first token, fp32 until both are done
    score   Z[I, J] = <q_I, k_J> / sqrt(D) for J <= I, else -inf
    select  top-k, a threshold on softmax(Z), or a threshold relative to the row's best block,
            straight from scores to int32 lists: no sort, no n x n mask and no scatter in between

Paper   SeerAttention (arXiv:2410.13276), sections 3.1 and 3.2; the relative threshold is FlashPrefill's
        rule (arXiv:2603.06199).
Oracle  seerbench.gate in plain torch: pool_blocks, AttnGate.forward, select_top_k, select_threshold.
        Ties go to the lower index there and here, so that the lists are equal entry for entry.

Four launches make a plan, since the host takes longer than the GPU for a short one: Q and K share a launch of
`_pool` and one of `_project`. The plan's scores stay unwritten above the diagonal, where `select` does not look.

top-k without a sort: a row looks for a score that exactly k are as large as, by counting how many are as large as a
guess. The first guess is where k would fall if the scores were normal, with mean and deviation from 64 of them;
until the k-th is known to lie between two guesses the next one follows that normal density, then k's place if the
scores between were even. Where no float lies between, or one is infinite, or it takes too long, the range of bits
is halved: a float's, with the sign folded in, order like integers. The row sits in registers all the while.
"""

from __future__ import annotations

# Rows of up to this many blocks fit a program's registers (2M tokens of 64-token blocks).
MOST_BLOCKS = 32768
