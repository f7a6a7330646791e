"""XAttention: masses along antidiagonals and the row rule."""

import numpy as np
import pytest
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


def test_masses_where_the_stride_does_not_divide_the_length():
    """Check a last group of one token, whose missing tokens count as zeros, as in upstream's padding."""
    tokens, block, stride = 61, 16, 4
    q, k = torch.randn(2, 1, 1, tokens, 8, dtype=torch.float64)
    mass = antidiagonal_mass(q, k, block, stride)[0, 0]
    want = np.zeros((4, 4))

    def dot(i, j):
        return float(q[0, 0, i] @ k[0, 0, j]) if max(i, j) < tokens else 0.0

    for i in range(16):
        sums = [sum(dot(i * stride + stride - 1 - a, j * stride + a) for a in range(stride)) for j in range(i + 1)]
        for j, share in enumerate(torch.tensor(sums).div(8**0.5 * stride).softmax(0).tolist()):
            want[i // 4, j // 4] += share
    assert np.allclose(mass.numpy(), want, atol=1e-5)


def test_upstream_s_first_chunk_keeps_about_one_block_more():
    """Compare with upstream's rule in its first chunk: block 0 is not forced, and masses count one block late."""
    n, tau = 24, 0.7
    mass = torch.rand(n, n, generator=torch.Generator().manual_seed(0)).pow(4).tril()
    ours = (mass_before(mass[None, None]) < tau)[0, 0] & torch.ones(n, n).tril().bool()
    more = []
    for i in range(3, n):
        rest = sorted(range(i), key=lambda j: -float(mass[i, j]))
        need = tau * float(mass[i].sum())
        upstream = {i, rest[0]}
        for place in range(1, len(rest)):
            if float(mass[i, i]) + sum(float(mass[i, j]) for j in rest[: place - 1]) < need:
                upstream.add(rest[place])
        chosen = set(ours[i].nonzero()[:, 0].tolist())
        assert chosen - upstream <= {0}
        more.append(len(upstream) - len(chosen))
    assert all(0 <= number <= 1 for number in more)
    assert 0 < sum(more) / len(more) <= 1


@pytest.mark.parametrize(
    ("options", "configuration", "suffix"),
    [
        ({}, "tau 0.9, stride 8", None),
        ({"tau": 0.8, "stride": 16}, "tau 0.8, stride 16", "tau0.8-s16"),
        ({"sparsity": 0.5}, "stride 8", None),
        ({"sparsity": 0.5, "stride": 16}, "stride 16", "s16"),
    ],
)
def test_rows_name_the_setting(options, configuration, suffix):
    method = create("xattention", **options)
    assert (method.configuration, method.variant) == (configuration, suffix)


def test_xattention_finds_a_far_block_at_every_length():
    """Check that a planted block is kept, also at exact multiples of upstream's chunk, where upstream loses it."""
    for tokens in (256, 320, 512):
        q, k = 0.1 * torch.randn(2, 1, 1, tokens, 16)
        q[..., 0], k[:, :, 64:80, 0] = 6, 6
        plan = create("xattention", block=16, tau=0.5).plan(q, k, LayerContext()).to_dense()[0, 0]
        assert plan[5:, 4].all()
