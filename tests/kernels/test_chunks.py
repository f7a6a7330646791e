"""Scores that the references compute by chunks of rows do not depend on the chunk."""

import torch

from seerbench.kernels.antidiagonal_mass import reference as antidiagonal_mass
from seerbench.kernels.pooled_scores import reference as pooled_scores


def test_chunks_change_nothing(monkeypatch):
    q, k = torch.randn(1, 4, 500, 16), torch.randn(1, 2, 500, 16)

    def scores():
        return antidiagonal_mass.antidiagonal_mass(q, k, 32, 8), pooled_scores.pooled_scores(q, k, 32)

    in_one_piece = scores()
    monkeypatch.setattr(antidiagonal_mass, "CHUNK_BYTES", 1)
    monkeypatch.setattr(pooled_scores, "CHUNK", 1)
    for expected, by_chunks in zip(in_one_piece, scores(), strict=True):
        assert torch.allclose(expected, by_chunks, atol=1e-5)
