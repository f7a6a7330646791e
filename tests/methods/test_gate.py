"""AttnGate: pooling, projections, RoPE, target, losses, selection rules, files."""

import math

import pytest
import torch

from seerbench.core.block_mask import causal_blocks
from seerbench.core.problem import LayerContext
from seerbench.core.top_k import select_threshold, select_top_k, top_k_count, top_k_density
from seerbench.kernels.pooled.api import pooled_attention
from seerbench.methods.gate import AttnGate, concat_pools, gate_scores, pool_blocks
from seerbench.methods.gate_config import POOLINGS, GateConfig, all_poolings
from seerbench.methods.gate_files import gate_set_names, load_gates, save_gates
from seerbench.methods.gate_losses import gate_loss, gate_target

# The v1 rule worked by hand (arXiv:2410.13276v1, blocks of 64): blocks, nominal sparsity, k, realised sparsity
TOP_K_TABLE = [
    (128, 0.4, 47, 0.4023),
    (128, 0.5, 37, 0.5070),
    (128, 0.6, 28, 0.6117),
    (128, 0.7, 20, 0.7129),
    (128, 0.8, 13, 0.8079),
    (128, 0.9, 6, 0.9088),
    (256, 0.5, 74, 0.5062),
    (256, 0.6, 57, 0.6049),
    (256, 0.9, 13, 0.9012),
    (512, 0.5, 149, 0.5031),
    (512, 0.7, 83, 0.7023),
    (512, 0.9, 26, 0.9011),
    (1024, 0.8, 108, 0.8003),
    (1024, 0.9, 52, 0.9011),
    (2048, 0.5, 599, 0.5007),
    (2048, 0.9, 105, 0.9001),
    (2048, 0.95, 51, 0.9508),
]


def rope(positions, dim=16, base=10_000.0):
    angles = positions[:, None] * base ** (-torch.arange(0, dim, 2) / dim)
    return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()


def causal_scores(n, heads=2, seed=0):
    scores = torch.randn(1, heads, n, n, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(~causal_blocks(n, 1, 1), -torch.inf)


@pytest.mark.parametrize(("blocks", "sparsity", "k", "realised"), TOP_K_TABLE)
def test_the_papers_top_k_table(blocks, sparsity, k, realised):
    assert top_k_count(blocks, sparsity) == k
    assert 1 - top_k_density(blocks, sparsity) == pytest.approx(realised, abs=5e-5)


@pytest.mark.parametrize("blocks", [1, 7, 64])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 0.999])
def test_top_k_keeps_min_of_row_and_k_and_the_best(blocks, sparsity):
    scores = causal_scores(blocks)
    mask = select_top_k(scores, sparsity, blocks * 16, 16)
    k = top_k_count(blocks, sparsity)
    assert mask.kv_num_blocks[0, 0].tolist() == [min(row + 1, k) for row in range(blocks)]
    assert mask.density() == pytest.approx(top_k_density(blocks, sparsity))
    kept = mask.to_dense()
    worst_kept = scores.masked_fill(~kept, torch.inf).amin(-1)
    best_left = scores.masked_fill(kept, -torch.inf).amax(-1)
    assert (worst_kept >= best_left).all()


def test_ties_go_to_the_lower_index():
    scores = torch.zeros(1, 1, 8, 8).masked_fill(~causal_blocks(8, 1, 1), -torch.inf)
    mask = select_top_k(scores, 0.7, 8 * 64, 64)
    k = top_k_count(8, 0.7)
    assert mask.kv_indices[0, 0, -1, :k].tolist() == list(range(k))


def test_the_last_rows_may_be_dense():
    mask = select_top_k(causal_scores(8), 0.9, 8 * 64, 64, last_rows_dense=2)
    assert mask.kv_num_blocks[0, 0].tolist() == [1, 1, 1, 1, 1, 1, 7, 8]


@pytest.mark.parametrize("tokens", [1, 16, 33, 100])
def test_query_blocks_taller_than_key_blocks(tokens):
    """A gate of 32 x 16: each row of its scores and target is about 32 queries, each column about 16 keys."""
    gate = AttnGate(GateConfig(block=16, block_q=32), 4, 2, 16)
    q, k = torch.randn(1, 4, tokens, 16), torch.randn(1, 2, tokens, 16)
    scores = gate_scores(gate, q, k, LayerContext(0, q, k, rope))
    visible = causal_blocks(tokens, 32, 16)
    assert torch.equal(scores.isfinite(), visible.expand_as(scores))
    square = AttnGate(GateConfig(block=32), 4, 2, 16)
    square.load_state_dict(gate.state_dict())
    # Queries are what a gate of 32 makes of them.
    of_square = square.project(pool_blocks(q, 32), pool_blocks(k, 32), rope)[0]
    assert torch.equal(gate.project(pool_blocks(q, 32), pool_blocks(k, 16), rope)[0], of_square)
    mask = select_top_k(scores, 0.5, tokens, 16, block_q=32)
    best = scores.masked_fill(~mask.to_dense(), torch.inf).amin(-1)
    left = scores.masked_fill(mask.to_dense(), -torch.inf).amax(-1)
    assert (best >= left).all()
    target = gate_target(pooled_attention(q, k, k, 16)[2], 2)
    assert torch.equal(target > 0, visible.expand_as(target))
    assert torch.allclose(target.sum(-1), torch.ones(target.shape[:-1]), atol=1e-6)


def test_threshold_keeps_what_exceeds_it_and_never_an_empty_row():
    scores = causal_scores(16)
    mask = select_threshold(scores, 0.2, 16 * 64, 64)
    kept, weights = mask.to_dense(), scores.softmax(-1)
    above = weights > 0.2
    assert (kept >= above).all()
    lonely = ~above.any(-1)
    assert lonely.any()  # the guard had work to do
    assert (kept.sum(-1)[lonely] == 1).all()
    assert (weights[kept & lonely[..., None]] == weights.amax(-1)[lonely]).all()


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
    """The whole gate once more, with loops, in float64."""
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


def test_initialisations_are_those_of_their_recipes():
    """The initial weights have the expected bounds and deviations at Llama-3.1-8B's shape."""
    torch.manual_seed(0)
    v1 = AttnGate(GateConfig(), 32, 8, 128)
    assert v1.wq.abs().max().item() == pytest.approx(0.01712, abs=2e-5)
    assert v1.wk.abs().max().item() == pytest.approx(0.01332, abs=2e-5)
    assert sum(p.numel() for p in v1.parameters()) == 786_432
    v2 = AttnGate(GateConfig(k_pool="maxminavg", projection="single", recipe="v2"), 32, 8, 128)
    assert v2.wk.std().item() == pytest.approx(0.02, rel=0.01)
    assert sum(p.numel() for p in v2.parameters()) == 1_572_864


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"q_pool": "sum"}, "no pooling"),
        ({"projection": "triple"}, "double or single"),
        ({"recipe": "v3"}, "v1 or v2"),
        ({"q_pool": "maxmin", "projection": "single"}, "one pooling operator"),
    ],
)
def test_impossible_gates_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        GateConfig(**options)


def test_gates_come_back_from_their_file(tmp_path):
    sets = {
        "v1": [AttnGate(GateConfig(block=16), 4, 2, 16) for _ in range(2)],
        "v2": [
            AttnGate(GateConfig(block=16, k_pool="maxminavg", projection="single", recipe="v2"), 4, 2, 16)
            for _ in range(2)
        ],
    }
    path = tmp_path / "gates.safetensors"
    save_gates(path, sets)
    assert gate_set_names(path) == ["v1", "v2"]
    for name, gates in sets.items():
        for before, after in zip(gates, load_gates(path, name), strict=True):
            assert before.config == after.config
            assert all(torch.equal(x, y) for x, y in zip(before.parameters(), after.parameters(), strict=True))
    with pytest.raises(ValueError, match="it has v1, v2"):
        load_gates(path, "v9")


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
