"""FlexPrefill: budgets, blocks that are always kept, and the choice by pooled scores."""

import numpy as np
import pytest
import torch

from seerbench.baselines.flexprefill import choose, estimate_blocks
from seerbench.core.problem import LayerContext
from seerbench.errors import Refused
from seerbench.methods.registry import create


@pytest.mark.parametrize("tokens", [160, 150])
def test_flexprefill_by_definition(tokens):
    """Compare budgets, forced blocks and the choice by pooled scores with loops in float64.

    Upstream's entry j of the diagonals is diagonal N - 1 - j. It sums entries in blocks, and groups of diagonals
    count from the last block of entries, which is short where the block does not divide the length.
    """
    block = 16
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
                entries = np.zeros(10 * block)
                entries[:tokens] = mass if mass is on_column else mass[::-1]
                sums = entries.reshape(10, block).sum(1)
                if mass is on_diagonal:
                    sums = sums[::-1]
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


@pytest.mark.parametrize(
    ("block", "min_budget", "least"), [(128, 512, 4), (64, 512, 8), (128, 1000, 8), (16, 40, 3)]
)
def test_the_least_budget_is_in_tokens(block, min_budget, least):
    """Check a head that attends to token 0 alone: upstream's ceil(min_budget / block) columns and diagonals."""
    tokens = 2048 if block > 16 else 256
    q, k = torch.zeros(1, 1, tokens, 16), torch.zeros(1, 1, tokens, 16)
    q[..., 0] = k[:, :, 0, 0] = 30.0
    method = create("flexprefill", block=block, min_budget=min_budget, tau=0.0)
    rows = method.plan(q, k, LayerContext()).to_dense()[0, 0]
    n = tokens // block
    # Columns of no mass rank by their index. The diagonal of most mass is the farthest, then the nearest.
    columns, diagonals = range(least), (0, n - 1, *range(1, least - 1))
    want = [[j in columns or i - j in diagonals for j in range(i + 1)] + [False] * (n - 1 - i) for i in range(n)]
    assert rows.tolist() == want
    assert method.configuration == f"gamma 0.9, min_budget {min_budget}"


@pytest.mark.parametrize(
    ("options", "limit"),
    [({"block": 64}, 512), ({}, 512), ({"min_budget": 1}, 256), ({"min_budget": 1000}, 1024)],
)
def test_short_inputs_are_dense(options, limit):
    """Check upstream's rule: dense up to max(2 * block, min_budget) tokens, with min_budget in whole blocks."""
    q, k = torch.zeros(1, 1, 2 * limit + 600, 16), torch.zeros(1, 1, 2 * limit + 600, 16)
    q[..., 0] = k[:, :, 0, 0] = 30.0
    method = create("flexprefill", tau=0.0, gamma=0.0, **options)
    assert method.plan(q[:, :, :limit], k[:, :, :limit], LayerContext()).density() == 1
    assert method.plan(q, k, LayerContext()).density() < 1


def test_a_request_of_a_short_input_is_refused():
    q, k = torch.randn(2, 1, 1, 512, 16)
    with pytest.raises(Refused, match="min_budget 512 attention is dense up to 512 tokens"):
        create("flexprefill", sparsity=0.5).plan(q, k, LayerContext())


def test_rows_name_the_setting():
    method = create("flexprefill", gamma=0.95, min_budget=1024)
    assert (method.configuration, method.variant) == ("gamma 0.95, min_budget 1024", "gamma0.95-min1024")
    assert create("flexprefill", sparsity=0.5).configuration == "min_budget 512"
