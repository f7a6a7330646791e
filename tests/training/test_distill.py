"""Test distillation: gate sets do not influence each other, and a killed training ends as an uninterrupted one."""

import shutil

import pytest
import torch
from tiny_jobs import SETS, distill_job, gate_weights

from seerbench.core.problem import LayerContext
from seerbench.core.rope import plain_rope, rotate
from seerbench.kernels.attn_gate.reference import pool_blocks
from seerbench.methods.decode_gate import DecodeGate, decode_loss, decode_target
from seerbench.methods.gate import AttnGate
from seerbench.methods.gate_losses import gate_loss, token_target
from seerbench.models.model_source import ModelSource
from seerbench.models.sources import load
from seerbench.training import distill
from seerbench.training.checkpoint import drop_checkpoint


def run_distill(world, out, **changes):
    return distill.distill(distill_job(world, out, **changes))


def test_sets_train_as_if_alone(world, tmp_path):
    """Check that a set trained together with others ends with the weights of a training by itself."""
    rows = run_distill(world, tmp_path / "all")
    assert len(rows) == 5 * 4
    for name in ("v1", "v2", "tall", "token", "r"):
        run_distill(world, tmp_path / name, sets={name: SETS[name]})
        assert torch.allclose(gate_weights(tmp_path / "all", name), gate_weights(tmp_path / name, name), atol=1e-6)


def test_single_queries_learn_the_same_part_by_part(monkeypatch):
    """Check that the rows of a gate without pooled queries give the gradients of one loss, in parts of any size."""
    torch.manual_seed(0)
    q, k, rope = torch.randn(2, 4, 70, 32), torch.randn(2, 2, 70, 32), plain_rope(32)
    gate, pools = AttnGate(SETS["token"], 4, 2, 32), pool_blocks(k, 16)
    loss = gate_loss(gate({"none": q}, pools, rope), token_target(q, k, 0, 16), "v2")
    loss.backward()
    want, gate.wk.grad = gate.wk.grad, None
    for size in (1, 70 * 8 * 4 * 16, 2**30):
        monkeypatch.setattr(distill, "MAP_AT_ONCE", {"cpu": size})
        with torch.no_grad():
            found = distill.learn_from_queries(gate, q, k, LayerContext(0, q, k, rope), 0.5, 0.0)
        assert found.item() == pytest.approx(loss.item() / 2, rel=1e-5)
        assert torch.allclose(gate.wk.grad, want / 2, atol=1e-6)
        gate.wk.grad = None


def test_a_gate_for_decoding_learns_the_same_part_by_part(monkeypatch):
    """Check that its loss is that of the second half of the rows, in parts of any size."""
    torch.manual_seed(0)
    rope, layer = (
        plain_rope(32),
        LayerContext(0, torch.randn(2, 4, 70, 32), torch.randn(2, 2, 70, 32), plain_rope(32)),
    )
    q, k = (rotate(x, *rope(torch.arange(70))) for x in (layer.q_unrotated, layer.k_unrotated))
    gate = DecodeGate(SETS["r"], 4, 2, 32)
    scores = gate(layer.q_unrotated, pool_blocks(layer.k_unrotated, 16), rope)[:, :, 35:]
    loss = decode_loss(scores, decode_target(q, k, 0, 16)[:, :, 35:])
    want = torch.autograd.grad(loss, list(gate.parameters()))
    for size in (1, 70 * 8 * 4 * 16, 2**30):
        monkeypatch.setattr(distill, "MAP_AT_ONCE", {"cpu": size})
        with torch.no_grad():
            found = distill.learn_from_queries(gate, q, k, layer, 0.5, 0.0)
        assert found.item() == pytest.approx(loss.item() / 2, rel=1e-5)
        for parameter, gradient in zip(gate.parameters(), want, strict=True):
            assert torch.allclose(parameter.grad, gradient / 2, atol=1e-6)
            parameter.grad = None


def test_every_query_is_learned_from_once_over_the_places():
    tokens, step = 8192, distill.QUERIES_PER_STEP
    runs = 6144 // step  # The recipe v2 leaves out a quarter of the rows.
    found = [distill.queries_of_step(tokens, "v2", (number + 0.5) / runs) for number in range(runs)]
    assert sorted(row for run in found for row in run) == list(range(2048, 8192))
    assert distill.queries_of_step(tokens, "v1", 0.0) == range(step)
    assert distill.queries_of_step(tokens, "v1", 0.9999) == range(tokens - step, tokens)
    assert distill.queries_of_step(70, "v2", 0.9) == range(17, 70)  # a short window has one run
    assert distill.queries_of_step(70, "r", 0.9) == range(35, 70)


def test_the_untrained_set_keeps_its_first_weights(world, tmp_path):
    run_distill(world, tmp_path / "gates")
    model = load(world / "model")
    first = distill.fresh_gates(model, {"v1": SETS["v1"]}, 0)["v1"]
    start = torch.cat([p.flatten() for p in first.parameters()])
    assert torch.equal(gate_weights(tmp_path / "gates", "untrained"), start)
    assert not torch.equal(gate_weights(tmp_path / "gates", "v1"), start)


def test_a_killed_run_continues_and_ends_the_same(world, tmp_path, monkeypatch):
    undisturbed = run_distill(world, tmp_path / "undisturbed")
    steps = []

    def dies_at_the_third(*arguments):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    original = distill.accumulate_gradients
    monkeypatch.setattr(distill, "accumulate_gradients", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_distill(world, tmp_path / "cut", checkpoint_seconds=-1)
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(distill, "accumulate_gradients", lambda *a: (steps.append(1), original(*a))[1])
    rows = run_distill(world, tmp_path / "cut", checkpoint_seconds=-1)
    assert len(steps) == 3 + 2  # Two of four steps were saved and the third was killed; two more completed it.
    assert rows == undisturbed
    assert torch.equal(gate_weights(tmp_path / "cut", "v1"), gate_weights(tmp_path / "undisturbed", "v1"))
    drop_checkpoint(tmp_path / "cut")
    drop_checkpoint(tmp_path / "undisturbed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "undisturbed"]


def test_a_model_that_was_trained_again_is_distilled_from_the_beginning(world, tmp_path):
    """Check that a complete checkpoint is used again for the same weights, and not for others at the same path."""
    folder, out = tmp_path / "model", tmp_path / "gates"
    shutil.copytree(world / "model", folder)
    model = ModelSource("model", folder)
    rows = run_distill(world, out, model=model)
    before = gate_weights(out, "v1")
    assert run_distill(world, out, model=model) == rows
    assert torch.equal(gate_weights(out, "v1"), before)
    other = load(folder)
    with torch.no_grad():
        other.model.layers[0].self_attn.k_proj.weight.mul_(-2)
    other.save_pretrained(folder)
    assert run_distill(world, out, model=model) != rows
    assert not torch.equal(gate_weights(out, "v1"), before)
