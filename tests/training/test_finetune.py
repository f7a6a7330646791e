"""Test fine-tuning: which loss reaches which weights, recomputed activations, and the dtype of the saved model."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny_jobs import ADAM, SETS, distill_job, finetune_job, gate_weights

from seerbench.core.problem import LayerContext
from seerbench.methods.gate_files import load_gates, save_gates
from seerbench.models.hugging_face import attention_method
from seerbench.models.sources import load
from seerbench.training.distill import distill, fresh_gates
from seerbench.training.finetune import JointAttention, finetune
from seerbench.training.losses import next_token_losses


@pytest.fixture(scope="module")
def gates(world, tmp_path_factory):
    """Distill gates on the toy model; return their file."""
    file = tmp_path_factory.mktemp("gates") / "gates"
    distill(distill_job(world, file))
    return file


def test_dense_and_joint_finetuning_write_models(world, gates, tmp_path):
    rows = finetune(finetune_job(world, tmp_path / "yarn"))
    assert [row["step"] for row in rows] == [0, 1]
    assert all(np.isnan(row["gate_loss"]) for row in rows)
    rows = finetune(finetune_job(world, tmp_path / "joint", gates))
    assert all(row["gate_loss"] > 0 for row in rows)
    config = json.loads((tmp_path / "joint" / "config.json").read_text())
    assert config["rope_parameters"]["rope_type"] == "yarn"
    assert config["weights_from"].endswith("; fine-tuned with YaRN, factor 4")
    before, after = gate_weights(gates, "v1"), gate_weights(tmp_path / "joint" / "gates.safetensors", "v1")
    assert not torch.equal(before, after)


def test_recomputed_activations_give_the_same_training(world, gates, tmp_path):
    """Check that layers computed again in the backward pass keep their masks and count their gate loss once."""
    changes = {**ADAM, "gates": gates, "batch": 2, "steps": 3}
    plain = finetune(finetune_job(world, tmp_path / "plain", **changes))
    again = finetune(finetune_job(world, tmp_path / "again", **changes, recompute=True))
    for first, second in zip(plain, again, strict=True):
        assert first["lm_loss"] == pytest.approx(second["lm_loss"], rel=1e-4)
        assert first["gate_loss"] == pytest.approx(second["gate_loss"], rel=1e-4)
    assert again[2]["lm_loss"] < again[0]["lm_loss"]
    for first, second in zip(
        load(tmp_path / "plain").parameters(), load(tmp_path / "again").parameters(), strict=True
    ):
        # Adam turns the sign of a vanishing gradient into a step; every other weight agrees.
        assert (first - second).abs().mean() < 0.01 * ADAM["optimizer"].adam_lr


@pytest.mark.parametrize("joint", [False, True])
def test_windows_that_pass_one_at_a_time_give_the_same_training(world, gates, tmp_path, monkeypatch, joint):
    changes = {**ADAM, "gates": gates if joint else None, "sparsity": 0.5 if joint else None, "batch": 3}
    together = finetune(finetune_job(world, tmp_path / "together", **changes))
    monkeypatch.setattr("seerbench.training.finetune.TOKENS_AT_ONCE", 100)
    alone = finetune(finetune_job(world, tmp_path / "alone", **changes))
    for first, second in zip(together, alone, strict=True):
        assert first["lm_loss"] == pytest.approx(second["lm_loss"], rel=1e-4)
        assert first["gate_loss"] == pytest.approx(second["gate_loss"], rel=1e-4, nan_ok=True)


def test_a_model_is_saved_in_the_dtype_that_it_is_read_in(world, tmp_path):
    finetune(finetune_job(world, tmp_path / "half", dtype="bfloat16", **ADAM))
    with safe_open(tmp_path / "half" / "model.safetensors", framework="pt") as saved:
        assert {str(saved.get_tensor(name).dtype) for name in saved.keys()} == {"torch.bfloat16"}  # noqa: SIM118
    assert load(tmp_path / "half", "cpu", "bfloat16").config.max_position_embeddings == 256


def test_each_loss_reaches_only_its_own_weights(world):
    """Check that the language-model loss gives the gate no gradient, and the gate loss the model none."""
    model = load(world / "model")
    gates = fresh_gates(model, {"v1": SETS["v1"]}, 0)["v1"]
    tokens = torch.randint(3, 100, (1, 65))
    for part in ("lm", "gate"):
        joint = JointAttention(gates, 0.5, 16)
        with attention_method(model, joint):
            losses = next_token_losses(model, tokens, 1024, "cpu")
        (losses.mean() if part == "lm" else joint.loss).backward()
        on_gate = any(p.grad is not None and p.grad.any() for p in gates.parameters())
        on_model = any(p.grad is not None and p.grad.any() for p in model.parameters())
        assert (on_gate, on_model) == ((False, True) if part == "lm" else (True, False))
        for parameter in [*gates.parameters(), *model.parameters()]:
            parameter.grad = None


def test_the_joint_forward_is_sparse(world):
    joint = JointAttention(fresh_gates(load(world / "model"), {"v1": SETS["v1"]}, 0)["v1"], 0.7, 16)
    q, k = torch.randn(1, 2, 128, 16), torch.randn(1, 1, 128, 16)
    angles = torch.arange(128)[:, None] * torch.ones(1, 16)
    layer = LayerContext(0, q, k, lambda positions: (angles[positions].cos(), angles[positions].sin()))
    assert joint.plan(q, k, layer).density() < 0.4


def test_gates_that_were_trained_again_are_finetuned_from_the_beginning(world, gates, tmp_path):
    file, out = tmp_path / "gates.safetensors", tmp_path / "joint"
    shutil.copy(gates, file)
    rows = finetune(finetune_job(world, out, file))
    assert finetune(finetune_job(world, out, file)) == rows  # the complete checkpoint
    others = load_gates(file, "v1")
    others[0].wk.mul_(-2)
    save_gates(file, {"v1": others})
    assert finetune(finetune_job(world, out, file)) != rows
