"""Target and losses of a gate, and a gate that learns."""

import math

import pytest
import torch

from seerbench.core.block_mask import causal_blocks
from seerbench.core.problem import LayerContext
from seerbench.kernels.pooled.api import pooled_attention
from seerbench.methods.gate import AttnGate, gate_scores
from seerbench.methods.gate_config import GateConfig
from seerbench.methods.gate_losses import gate_loss, gate_target, token_target


def rope(positions, dim=16, base=10_000.0):
    angles = positions[:, None] * base ** (-torch.arange(0, dim, 2) / dim)
    return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()


def causal_scores(n, heads=2, seed=0):
    scores = torch.randn(1, heads, n, n, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(~causal_blocks(n, 1, 1), -torch.inf)


@pytest.mark.parametrize("tokens", [64, 100, 129])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_target_against_a_dense_float64_map(tokens, kv_heads):
    q, k, v = torch.randn(1, 4, tokens, 16), *torch.randn(2, 1, kv_heads, tokens, 16)
    target = gate_target(pooled_attention(q, k, v, 16)[2])
    scores = q.double() @ k.double().repeat_interleave(4 // kv_heads, 1).transpose(-1, -2) / 4
    weights = scores.masked_fill(~torch.ones(tokens, tokens).tril().bool(), -torch.inf).softmax(-1)
    n = target.shape[-1]
    want = torch.zeros(1, 4, n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(i + 1):
            want[..., i, j] = weights[..., i * 16 : i * 16 + 16, j * 16 : j * 16 + 16].amax((-1, -2))
    want /= want.sum(-1, keepdim=True)
    assert torch.allclose(target.double(), want, atol=1e-6)
    assert torch.allclose(target.sum(-1), torch.ones(1, 4, n), atol=1e-6)
    assert (target.triu(1) == 0).all()


@pytest.mark.parametrize("first", [0, 21, 48])
def test_target_of_single_queries_against_a_dense_float64_map(first):
    q, k = torch.randn(1, 4, 70, 16), torch.randn(1, 2, 70, 16)
    target = token_target(q[:, :, first:60], k, first, 16)
    scores = q.double() @ k.double().repeat_interleave(2, 1).transpose(-1, -2) / 4
    weights = scores.masked_fill(~torch.ones(70, 70).tril().bool(), -torch.inf).softmax(-1)[:, :, first:60]
    want = torch.stack([part.amax(-1) for part in weights.split(16, -1)], -1)
    assert torch.allclose(target.double(), want / want.sum(-1, keepdim=True), atol=1e-6)
    assert torch.equal(target == 0, (want == 0))


def test_losses_are_their_formulas():
    scores, target = causal_scores(8).double(), causal_scores(8, seed=1).softmax(-1).double()
    v1 = 10 * ((scores.float().softmax(-1) - target.float()) ** 2).mean()
    assert torch.allclose(gate_loss(scores.float(), target, "v1"), v1)
    log_gate = scores.masked_fill(scores == -math.inf, -1e20).log_softmax(-1)
    terms = torch.where(target > 0, target * (target.clamp_min(1e-300).log() - log_gate), 0.0)
    v2 = 10 * terms[..., 2:, :].mean()
    assert gate_loss(scores.float(), target, "v2").item() == pytest.approx(v2.item(), rel=1e-5)
    for recipe in ("v1", "v2"):
        leaf = scores.float().requires_grad_()
        gate_loss(leaf, target, recipe).backward()
        assert leaf.grad.isfinite().all()


def test_training_a_gate_lowers_its_loss():
    torch.manual_seed(0)
    q, k = torch.randn(1, 2, 256, 16), torch.randn(1, 1, 256, 16)
    target = gate_target(pooled_attention(3 * q, k, k, 16)[2])
    for recipe in ("v1", "v2"):
        gate = AttnGate(GateConfig(block=16, recipe=recipe), 2, 1, 16)
        optimizer = torch.optim.AdamW(gate.parameters(), lr=1e-2, weight_decay=0.0)
        losses = []
        for _ in range(60):
            loss = gate_loss(gate_scores(gate, q, k, LayerContext(0, q, k, rope)), target, recipe)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0]
