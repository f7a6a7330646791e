"""Mean correction: each skipped block counts as one key and value."""

import numpy as np
import torch

from seerbench.core.problem import LayerContext
from seerbench.methods.mean_correction import mean_corrected
from seerbench.methods.registry import create

BLOCK = 16


def test_mean_correction_is_one_pooled_key_per_skipped_block(qkv):
    q, k, v = qkv
    plan = create("random", sparsity=0.8, block=BLOCK).plan(q, k, LayerContext())
    out, kept = mean_corrected(q, k, v, plan), plan.to_dense()[0]
    for head, query in ((0, 499), (3, 200), (2, 17)):
        logits, values = [], []
        for j in range(query // BLOCK + 1):
            keys = slice(j * BLOCK, min((j + 1) * BLOCK, query + 1))
            block_k, block_v = k[0, head // 2, keys].double(), v[0, head // 2, keys].double()
            if kept[head, query // BLOCK, j]:
                logits += (block_k @ q[0, head, query].double() / 4).tolist()
                values += list(block_v)
            else:
                logits.append(float(block_k.mean(0) @ q[0, head, query].double()) / 4 + np.log(len(block_k)))
                values.append(block_v.mean(0))
        want = torch.tensor(logits, dtype=torch.float64).softmax(0) @ torch.stack(values)
        assert torch.allclose(out[0, head, query].double(), want, atol=1e-5)
