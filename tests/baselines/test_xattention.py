"""XAttention: masses along antidiagonals and the row rule."""

import numpy as np
import torch

from seerbench.baselines.xattention import mass_before
from seerbench.core.problem import LayerContext
from seerbench.kernels.antidiagonal_mass.api import antidiagonal_mass
from seerbench.methods.registry import create


def test_xattention_by_definition():
    """Compare antidiagonal sums, softmax and row rule with loops in float64, at whole blocks."""
    tokens, block, stride = 64, 16, 4
    q, k = torch.randn(2, 1, 1, tokens, 8, dtype=torch.float64)
    mass = antidiagonal_mass(q, k, block, stride)[0, 0]
    want = np.zeros((4, 4))
    for i in range(16):
        sums = [
            sum(float(q[0, 0, i * stride + stride - 1 - a] @ k[0, 0, j * stride + a]) for a in range(stride))
            for j in range(i + 1)
        ]
        shares = torch.tensor(sums).div(8**0.5 * stride).softmax(0)
        for j, share in enumerate(shares.tolist()):
            want[i // 4, j // 4] += share
    assert np.allclose(mass.numpy(), want, atol=1e-5)
    kept = (mass_before(mass) < 0.7).numpy()
    for i in range(4):
        chosen = {0, i}
        rest = sorted(set(range(i)) - chosen, key=lambda j: -want[i, j])
        while rest and sum(want[i, j] for j in chosen) < 0.7 * want[i].sum():
            chosen.add(rest.pop(0))
        assert set(np.flatnonzero(kept[i, : i + 1])) == chosen


def test_xattention_finds_a_far_block_at_every_length():
    """Check that a planted block is kept, also at exact multiples of upstream's chunk, where upstream loses it."""
    for tokens in (256, 320, 512):
        q, k = 0.1 * torch.randn(2, 1, 1, tokens, 16)
        q[..., 0], k[:, :, 64:80, 0] = 6, 6
        plan = create("xattention", block=16, tau=0.5).plan(q, k, LayerContext()).to_dense()[0, 0]
        assert plan[5:, 4].all()
