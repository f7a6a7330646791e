"""Random blocks: the diagonal is kept, and heads and layers differ."""

import torch

from seerbench.core.problem import LayerContext


def test_random_keeps_the_diagonal_and_differs_by_head_and_layer(make, qkv):
    method = make("random", 0.7)
    first, second = (method.plan(qkv[0], qkv[1], LayerContext(index)).to_dense() for index in (0, 1))
    assert first.diagonal(dim1=-2, dim2=-1).all()
    assert not torch.equal(first, second)
    assert not torch.equal(first[:, 0], first[:, 1])
