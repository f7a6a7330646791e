"""AttnGate: pooling, projections, RoPE, scores, initial weights."""

import pytest
import torch

from seerbench.core.block_mask import causal_blocks
from seerbench.core.problem import LayerContext
from seerbench.core.top_k import select_top_k
from seerbench.kernels.attn_gate.reference import pool_blocks
from seerbench.kernels.pooled.api import pooled_attention
from seerbench.methods.gate import AttnGate, concat_pools, gate_scores
from seerbench.methods.gate_config import POOLINGS, GateConfig, all_poolings
from seerbench.methods.gate_losses import gate_target


def rope(positions, dim=16, base=10_000.0):
    angles = positions[:, None] * base ** (-torch.arange(0, dim, 2) / dim)
    return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()


@pytest.mark.parametrize("tokens", [1, 16, 33, 112])
def test_query_blocks_taller_than_key_blocks(tokens):
    """Check a gate of 32 x 16: each row of its scores and target covers 32 queries, each column 16 keys."""
    gate = AttnGate(GateConfig(block=16, block_q=32), 4, 2, 16)
    q, k = torch.randn(1, 4, tokens, 16), torch.randn(1, 2, tokens, 16)
    scores = gate_scores(gate, q, k, LayerContext(0, q, k, rope))
    visible = causal_blocks(tokens, 32, 16)
    assert torch.equal(scores.isfinite(), visible.expand_as(scores))
    square = AttnGate(GateConfig(block=32), 4, 2, 16)
    square.load_state_dict(gate.state_dict())
    # The projected queries equal those of a gate of 32 x 32.
    of_square = square.project(pool_blocks(q, 32), pool_blocks(k, 32), rope)[0]
    assert torch.equal(gate.project(pool_blocks(q, 32), pool_blocks(k, 16), rope)[0], of_square)
    mask = select_top_k(scores, 0.42, tokens, 16, block_q=32)
    best = scores.masked_fill(~mask.to_dense(), torch.inf).amin(-1)
    left = scores.masked_fill(mask.to_dense(), -torch.inf).amax(-1)
    assert (best >= left).all()
    target = gate_target(pooled_attention(q, k, k, 16)[2], 2)
    assert torch.equal(target > 0, visible.expand_as(target))
    assert torch.allclose(target.sum(-1), torch.ones(target.shape[:-1]), atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 100])
def test_pooling_against_a_loop(tokens):
    x = torch.randn(2, 3, tokens, 4)
    pools = pool_blocks(x, 16)
    for index, start in enumerate(range(0, tokens, 16)):
        window = x[:, :, start : start + 16]
        assert torch.equal(pools["max"][:, :, index], window.amax(2))
        assert torch.equal(pools["min"][:, :, index], window.amin(2))
        assert torch.allclose(pools["avg"][:, :, index], window.mean(2), atol=1e-6)
    joined = concat_pools(pools, "maxminavg")
    assert torch.equal(joined, torch.cat([pools["max"], pools["min"], pools["avg"]], -1))


def test_there_are_49_poolings_and_each_scores():
    configs = all_poolings(block=16)
    assert len(configs) == len(POOLINGS) ** 2 == 49
    q, k = torch.randn(1, 4, 70, 16), torch.randn(1, 2, 70, 16)
    for name, config in configs.items():
        scores = gate_scores(AttnGate(config, 4, 2, 16), q, k, LayerContext(0, q, k, rope))
        assert config.pooling == name
        assert scores.shape == (1, 4, 5, 5)
        assert scores.dtype == torch.float32
        assert torch.equal(scores[0, 0] == -torch.inf, torch.ones(5, 5).triu(1).bool())


@pytest.mark.parametrize("projection", ["double", "single"])
def test_scores_by_definition(projection):
    """Compare a gate's scores with its definition, written as loops in float64."""
    config = GateConfig(projection=projection, block=16)
    gate = AttnGate(config, 4, 2, 16).double()
    q, k = torch.randn(1, 4, 64, 16).double(), torch.randn(1, 2, 64, 16).double()
    scores = gate_scores(gate, q, k, LayerContext(0, q, k, rope))
    cos, sin = rope(torch.arange(4) * 16)
    for h in range(4):
        for i in range(4):
            for j in range(i + 1):
                query = q[0, h, i * 16 : i * 16 + 16].mean(0)
                window = k[0, h // 2, j * 16 : j * 16 + 16]
                key = torch.cat([window.amax(0), window.amin(0)])
                if projection == "double":
                    query, key = query @ gate.wq[h], key @ gate.wk[h // 2]
                else:
                    key = key @ gate.wk[h]
                turned = []
                for x, at in ((query, i), (key, j)):
                    half = torch.cat([-x[8:], x[:8]])
                    turned.append(x * cos[at] + half * sin[at])
                want = (turned[0] @ turned[1]).item() / 4
                assert scores[0, h, i, j].item() == pytest.approx(want, abs=1e-5)


def test_scores_do_not_change_under_a_global_shift_of_positions():
    config = GateConfig(block=16)
    gate, q, k = AttnGate(config, 4, 2, 16), torch.randn(1, 4, 128, 16), torch.randn(1, 2, 128, 16)
    here = gate_scores(gate, q, k, LayerContext(0, q, k, rope))
    there = gate_scores(gate, q, k, LayerContext(0, q, k, lambda positions: rope(positions + 4096)))
    seen = here.isfinite()
    assert torch.allclose(here[seen], there[seen], atol=1e-4)
    without = gate_scores(gate, q, k, LayerContext(0, q, k, lambda positions: rope(positions * 0)))
    assert not torch.allclose(here[seen], without[seen], atol=1e-3)


def test_the_arm_without_rope_reads_rotated_q_and_k():
    gate = AttnGate(GateConfig(block=16, rope=False), 2, 2, 16)
    q, k = torch.randn(2, 1, 2, 64, 16)
    same = gate_scores(gate, q, k, LayerContext(0, torch.zeros_like(q), torch.zeros_like(k), rope))
    assert torch.equal(same, gate_scores(gate, q, k, LayerContext(0)))
    with pytest.raises(ValueError, match="before RoPE"):
        gate_scores(AttnGate(GateConfig(block=16), 2, 2, 16), q, k, LayerContext(0))


def test_initialisations_are_those_of_their_recipes():
    """Check that the initial weights have the expected bounds and deviations at Llama-3.1-8B's shape."""
    torch.manual_seed(0)
    v1 = AttnGate(GateConfig(), 32, 8, 128)
    assert v1.wq.abs().max().item() == pytest.approx(0.01712, abs=2e-5)
    assert v1.wk.abs().max().item() == pytest.approx(0.01332, abs=2e-5)
    assert sum(p.numel() for p in v1.parameters()) == 786_432
    v2 = AttnGate(GateConfig(k_pool="maxminavg", projection="single", recipe="v2"), 32, 8, 128)
    assert v2.wk.std().item() == pytest.approx(0.02, rel=0.01)
    assert sum(p.numel() for p in v2.parameters()) == 1_572_864


@pytest.mark.parametrize(("block_q", "tokens"), [(16, 1), (16, 53), (32, 53), (32, 96)])
@pytest.mark.parametrize("rotates", [True, False])
def test_scores_without_pooled_queries_are_the_best_of_a_block(block_q, tokens, rotates, monkeypatch):
    """Compare with loops over queries in float64; a block of rows at a time gives the same scores."""
    config = GateConfig(q_pool="none", projection="single", rope=rotates, block=16, block_q=block_q)
    gate = AttnGate(config, 4, 2, 16).double()
    q, k = torch.randn(1, 4, tokens, 16).double(), torch.randn(1, 2, tokens, 16).double()
    layer = LayerContext(0, torch.zeros_like(q), k, rope)  # It reads the queries after RoPE, and keys before.
    scores = gate_scores(gate, q, k, layer)
    cos, sin = rope(torch.arange(scores.shape[3]) * 16)
    want = torch.full(scores.shape, -torch.inf)
    for h in range(4):
        for j in range(scores.shape[3]):
            window = k[0, h // 2, j * 16 : j * 16 + 16]
            key = torch.cat([window.amax(0), window.amin(0)]) @ gate.wk[h]
            if rotates:
                key = key * cos[j] + torch.cat([-key[8:], key[:8]]) * sin[j]
            for i in range(scores.shape[2]):
                if j * 16 < (i + 1) * block_q:
                    want[0, h, i, j] = (q[0, h, i * block_q : (i + 1) * block_q] @ key / 4).max()
    assert torch.allclose(scores, want, atol=1e-5)
    monkeypatch.setattr("seerbench.methods.gate.SCORES_AT_ONCE", 1)
    assert torch.allclose(gate_scores(gate, q, k, layer), scores, atol=1e-6)
