"""FlexPrefill: budgets, blocks that are always kept, and the choice by pooled scores."""

import numpy as np
import torch

from seerbench.baselines.flexprefill import choose, estimate_blocks


def test_flexprefill_by_definition():
    """Compare budgets, forced blocks and the choice by pooled scores with loops in float64."""
    tokens, block = 160, 16
    q, k = torch.randn(2, 1, 2, tokens, 8, dtype=torch.float64)
    columns, diagonals, distance, pooled = estimate_blocks(q, k, block)
    for head in range(2):
        on_column, on_diagonal = np.zeros(tokens), np.zeros(tokens)
        for i in range(tokens - block, tokens):
            for j, share in enumerate((k[0, head, : i + 1] @ q[0, head, i] * 8**-0.5).softmax(0).tolist()):
                on_column[j] += share / block
                on_diagonal[i - j] += share / block
        assert np.allclose(columns[0, head], on_column, atol=1e-5)
        assert np.allclose(diagonals[0, head], on_diagonal, atol=1e-5)
        for tau in (0.0, 2.0):  # pooled scores are never used, then always
            kept = choose(columns, diagonals, distance, pooled, 0.6, tau, block, 4)[0, head]
            want = torch.zeros(10, 10, dtype=torch.bool)
            picks = []
            for mass in (on_column, on_diagonal):
                below = (np.cumsum(np.sort(mass)[::-1]) <= 0.6).sum() + 1
                count = 4 if tau else min(10, max(4, below // block + 1))
                sums = mass.reshape(10, block).sum(1)
                picks.append([0, *(b for b in np.argsort(-sums, kind="stable") if b != 0)][:count])
            for i in range(10):
                for j in range(i + 1):
                    want[i, j] = j in picks[0] or i - j in picks[1]
            if tau:
                order = pooled[0, head].flatten().argsort(descending=True, stable=True)
                total = 0.0
                for place in order.tolist():
                    total += float(pooled[0, head].flatten()[place])
                    if total > 0.6 * 10:
                        break
                    want[place // 10, place % 10] = True
            assert torch.equal(kept, want.tril())
