"""Test the gate for decoding: its scores and target against plain loops, its loss, its files."""

import math

import pytest
import torch
import torch.nn.functional as F

from seerbench.core.rope import plain_rope, rotate
from seerbench.errors import ModelError
from seerbench.kernels.attn_gate.reference import pool_blocks
from seerbench.methods.decode_gate import DecodeGate, decode_loss, decode_rows, decode_target, load_decode_gates
from seerbench.methods.decode_gate_config import DecodeGateConfig
from seerbench.methods.gate import AttnGate
from seerbench.methods.gate_config import GateConfig
from seerbench.methods.gate_files import save_gates

HEADS, KV_HEADS, DIM, N, BLOCK = 6, 2, 16, 70, 16
ROPE = plain_rope(DIM)


def gate_with(**options):
    gate = DecodeGate(DecodeGateConfig(block=BLOCK, **options), HEADS, KV_HEADS, DIM)
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter)
    return gate.double()


def drawn():
    shapes = [(2, heads, N, DIM) for heads in (HEADS, KV_HEADS)]
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def at(x, position):
    """Rotate one vector by a position."""
    cos, sin = ROPE(torch.tensor([position]))
    return rotate(x[None], cos, sin)[0]


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("k_pool", ["maxminavg", "avg"])
@torch.no_grad()
def test_scores_are_those_of_the_formula(norm, k_pool):
    gate, (q, k) = gate_with(norm=norm, k_pool=k_pool), drawn()
    scores = gate(q, pool_blocks(k, BLOCK), ROPE)
    assert scores.shape == (2, KV_HEADS, N, 5)
    for token, head, block in [(69, 0, 0), (69, 1, 3), (64, 1, 2), (20, 0, 0), (33, 1, 1)]:
        query = sum(q[1, head * 3 + j, token] @ gate.wq[head, j] for j in range(3))
        part = k[1, head, block * BLOCK : (block + 1) * BLOCK]
        pools = {"max": part.amax(0), "min": part.amin(0), "avg": part.mean(0)}
        key = torch.cat([pools[name] for name in ("max", "min", "avg") if name in k_pool]) @ gate.wk[head]
        if norm:
            query = F.rms_norm(query, (DIM,), gate.q_norm, 1e-6)
            key = F.rms_norm(key, (DIM,), gate.k_norm, 1e-6)
        want = float(at(query, token) @ at(key, block * BLOCK)) / math.sqrt(DIM)
        assert scores[1, head, token, block].item() == pytest.approx(want, rel=1e-4, abs=1e-4)
    blocks = torch.arange(N) // BLOCK
    assert ((scores == -math.inf) == (torch.arange(5) >= blocks[:, None])).all()


@torch.no_grad()
def test_some_queries_have_the_scores_that_they_have_among_all():
    gate, (q, k) = gate_with(), drawn()
    pools = pool_blocks(k, BLOCK)
    torch.testing.assert_close(gate(q[:, :, 30:50], pools, ROPE, 30), gate(q, pools, ROPE)[:, :, 30:50])


@pytest.mark.parametrize(("first", "rows"), [(0, N), (35, 20), (69, 1), (3, 5)])
def test_the_target_is_that_of_the_definition(first, rows):
    q, k = drawn()
    found = decode_target(q[:, :, first : first + rows], k, first, BLOCK)
    assert found.shape == (2, KV_HEADS, rows, 5)
    for token in {first, first + rows // 2, first + rows - 1}:
        for head in range(KV_HEADS):
            want = torch.zeros(5, dtype=torch.float64)
            for j in range(3):
                weights = (q[0, head * 3 + j, token] @ k[0, head, : token + 1].T / math.sqrt(DIM)).softmax(0)
                for block in range(token // BLOCK):  # strictly before the token's own block
                    most = weights[block * BLOCK : (block + 1) * BLOCK].max()
                    want[block] = torch.maximum(want[block], most)
            want = want / want.sum() if token >= BLOCK else want
            torch.testing.assert_close(found[0, head, token - first], want, rtol=1e-6, atol=1e-8)


def test_the_loss_is_zero_at_the_target_and_its_gradient_is_finite():
    """Include rows of the first block, which have neither scores nor a target."""
    gate, (q, k) = gate_with(), drawn()
    target = decode_target(q, k, 0, BLOCK)
    assert decode_loss(target.log(), target).item() == pytest.approx(0.0, abs=1e-6)
    scores = gate(q, pool_blocks(k, BLOCK), ROPE)
    loss = decode_loss(scores, target)
    rows = slice(BLOCK, None)
    kl = (target * (target.clamp_min(1e-30).log() - scores.log_softmax(-1).clamp_min(-1e9)))[:, :, rows].sum()
    assert loss.item() == pytest.approx(10 * kl.item() / target.numel(), rel=1e-5)
    loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in gate.parameters())


def test_the_second_half_of_the_rows_counts():
    assert decode_rows(100) == range(50, 100)
    assert decode_rows(7) == range(3, 7)


def test_a_file_gives_the_gates_back(tmp_path):
    path, gates = tmp_path / "gates.safetensors", [gate_with(norm=False, k_pool="max").float() for _ in range(3)]
    save_gates(path, {"r": gates, "v1": [AttnGate(GateConfig(block=BLOCK), HEADS, KV_HEADS, DIM)]})
    found = load_decode_gates(path)
    for gate, same in zip(gates, found, strict=True):
        assert same.config == gate.config
        assert (same.q_heads, same.kv_heads, same.head_dim) == (HEADS, KV_HEADS, DIM)
        assert all(torch.equal(same.state_dict()[name], value) for name, value in gate.state_dict().items())
        assert not any(p.requires_grad for p in same.parameters())
    for name in ("v1", "other"):
        with pytest.raises(ModelError, match=f"no set '{name}' of gates for decoding; it has r, v1"):
            load_decode_gates(path, name)


@pytest.mark.parametrize("wrong", [{"k_pool": "median"}, {"recipe": "v1"}])
def test_unknown_options_are_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        DecodeGateConfig(**wrong)
