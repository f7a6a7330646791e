"""FlashPrefill: scores and the threshold relative to a row's best."""

import numpy as np
import torch

from seerbench.core.problem import LayerContext
from seerbench.kernels.pooled_scores.api import pooled_scores
from seerbench.methods.registry import create


def test_flashprefill_keeps_what_is_near_the_row_s_best():
    q, k = torch.randn(2, 1, 1, 160, 8, dtype=torch.float64)
    scores = pooled_scores(q, k, 16)[0, 0]
    plan = create("flashprefill", block=16, alpha=0.5).plan(q, k, LayerContext()).to_dense()[0, 0]
    for i in range(10):
        row = [
            sum(
                float((q[0, 0, m] @ k[0, 0, 16 * j : 16 * j + 16].mean(0) * 8**-0.5).exp())
                for m in range(16 * i, 16 * i + 16)
                if m >= 16 * j + 15
            )
            for j in range(i + 1)
        ]
        assert np.allclose(scores[i, : i + 1].exp(), row, atol=1e-5)
        want = [j < 2 or i - j < 4 or i >= 8 or score >= 0.5 * max(row) for j, score in enumerate(row)]
        assert plan[i, : i + 1].tolist() == want
