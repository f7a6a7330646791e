"""Distillation and joint fine-tuning: independence of sets, resuming, what reaches which weights."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from tiny_jobs import OPTIMIZER, SETS, distill_job, finetune_job

from seerbench.core.problem import LayerContext
from seerbench.data.tokens import tokenise, train_tokenizer
from seerbench.methods.gate_files import load_gates
from seerbench.models.hugging_face import attention_method
from seerbench.models.sources import load
from seerbench.models.yarn import load_with_yarn
from seerbench.training import distill
from seerbench.training import finetune as training_finetune
from seerbench.training.checkpoint import drop_checkpoint
from seerbench.training.distill import cosine_at, fresh_gates
from seerbench.training.finetune import finetune

# The authors' optimizer and packing.
ADAM = {
    "mix": None,
    "packing": 3,
    "optimizer": OPTIMIZER.model_copy(update={"muon_lr": None, "adam_lr": 0.003, "embed_lr": 0.003}),
    "gate_learning_rate": 0.003,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A toy corpus, its tokenizer, and a toy Llama of two layers on disk."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 5)) for _ in range(60)]
    texts = pd.DataFrame(
        {
            "id": [f"{i}" for i in range(12)],
            "text": [" ".join(rng.choice(words, 400)) + " 0123456789\n" for _ in range(12)],
            "split": ["train"] * 8 + ["validation"] * 2 + ["test"] * 2,
        }
    )
    tokenizer = train_tokenizer(texts[texts.split == "train"].text.tolist(), 512, folder / "tokenizer")
    tokenise(texts, tokenizer, folder / "tokens.parquet", name="toy", source={"kind": "test"})
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


def run_distill(world, out, **changes):
    return distill.distill(distill_job(world, out, **changes))


def weights(path, name):
    return torch.cat([p.flatten() for gate in load_gates(path, name) for p in gate.parameters()])


def test_sets_train_as_if_alone(world, tmp_path):
    """A set trained beside others ends with the weights that it gets by itself."""
    rows = run_distill(world, tmp_path / "all")
    assert len(rows) == 3 * 4
    for name in ("v1", "v2", "tall"):
        run_distill(world, tmp_path / name, sets={name: SETS[name]})
        assert torch.allclose(weights(tmp_path / "all", name), weights(tmp_path / name, name), atol=1e-6)


def test_the_untrained_set_keeps_its_first_weights(world, tmp_path):
    run_distill(world, tmp_path / "gates")
    model = load(world / "model")
    first = fresh_gates(model, {"v1": SETS["v1"]}, 0)["v1"]
    start = torch.cat([p.flatten() for p in first.parameters()])
    assert torch.equal(weights(tmp_path / "gates", "untrained"), start)
    assert not torch.equal(weights(tmp_path / "gates", "v1"), start)


def test_a_killed_run_continues_and_ends_the_same(world, tmp_path, monkeypatch):
    whole = run_distill(world, tmp_path / "whole")
    steps = []

    def dies_at_the_third(*arguments):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    original = distill._distill_step
    monkeypatch.setattr(distill, "_distill_step", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_distill(world, tmp_path / "cut", checkpoint_seconds=-1)
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(distill, "_distill_step", lambda *a: (steps.append(1), original(*a))[1])
    rows = run_distill(world, tmp_path / "cut", checkpoint_seconds=-1)
    assert len(steps) == 3 + 2  # two of four steps were done; the third died, then two more
    assert rows == whole
    assert torch.equal(weights(tmp_path / "cut", "v1"), weights(tmp_path / "whole", "v1"))
    drop_checkpoint(tmp_path / "cut")
    drop_checkpoint(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]


def test_extension_is_yarn_over_the_trained_context(world):
    model = load_with_yarn(world / "model", 4)
    parameters = model.config.rope_parameters
    assert parameters["rope_type"] == "yarn"
    assert parameters["original_max_position_embeddings"] == 64
    assert model.config.max_position_embeddings == 256
    assert model.model.rotary_emb.attention_scaling == pytest.approx(0.1 * np.log(4) + 1)


def test_dense_and_joint_finetuning_write_models(world, tmp_path):
    run_distill(world, tmp_path / "gates")
    rows = finetune(finetune_job(world, tmp_path / "yarn"))
    assert [row["step"] for row in rows] == [0, 1]
    assert all(np.isnan(row["gate_loss"]) for row in rows)
    rows = finetune(finetune_job(world, tmp_path / "joint", tmp_path / "gates"))
    assert all(row["gate_loss"] > 0 for row in rows)
    assert json.loads((tmp_path / "joint" / "config.json").read_text())["rope_parameters"]["rope_type"] == "yarn"
    before, after = weights(tmp_path / "gates", "v1"), weights(tmp_path / "joint" / "gates.safetensors", "v1")
    assert not torch.equal(before, after)


def test_recomputed_activations_give_the_same_training(world, tmp_path):
    """Layers computed again in backward keep their masks and count their gate loss once."""
    run_distill(world, tmp_path / "gates")
    changes = {**ADAM, "gates": tmp_path / "gates", "batch": 2, "steps": 3}
    plain = finetune(finetune_job(world, tmp_path / "plain", **changes))
    again = finetune(finetune_job(world, tmp_path / "again", **changes, recompute=True))
    for one, other in zip(plain, again, strict=True):
        assert one["lm_loss"] == pytest.approx(other["lm_loss"], rel=1e-4)
        assert one["gate_loss"] == pytest.approx(other["gate_loss"], rel=1e-4)
    assert again[2]["lm_loss"] < again[0]["lm_loss"]
    for one, other in zip(
        load(tmp_path / "plain").parameters(), load(tmp_path / "again").parameters(), strict=True
    ):
        # Adam turns the sign of a vanishing gradient into a step; every other weight agrees.
        assert (one - other).abs().mean() < 0.01 * ADAM["optimizer"].adam_lr


def test_a_model_is_saved_in_the_dtype_that_it_is_read_in(world, tmp_path):
    finetune(finetune_job(world, tmp_path / "half", dtype="bfloat16", **ADAM))
    with safe_open(tmp_path / "half" / "model.safetensors", framework="pt") as saved:
        assert {str(saved.get_tensor(name).dtype) for name in saved.keys()} == {"torch.bfloat16"}  # noqa: SIM118
    assert load(tmp_path / "half", "cpu", "bfloat16").config.max_position_embeddings == 256


def test_each_loss_reaches_only_its_own_weights(world):
    """The language-model loss leaves no gradient on the gate, the gate loss none on the backbone."""
    model = load(world / "model")
    gates = fresh_gates(model, {"v1": SETS["v1"]}, 0)["v1"]
    tokens = torch.randint(3, 100, (1, 65))
    for part in ("lm", "gate"):
        joint = training_finetune._Joint(gates, 0.5, 16)
        with attention_method(model, joint):
            losses = training_finetune._token_losses(model, tokens, 1024, "cpu")
        (losses.mean() if part == "lm" else joint.loss).backward()
        on_gate = any(p.grad is not None and p.grad.any() for p in gates.parameters())
        on_model = any(p.grad is not None and p.grad.any() for p in model.parameters())
        assert (on_gate, on_model) == ((False, True) if part == "lm" else (True, False))
        for parameter in [*gates.parameters(), *model.parameters()]:
            parameter.grad = None


def test_the_joint_forward_is_sparse(world):
    joint = training_finetune._Joint(fresh_gates(load(world / "model"), {"v1": SETS["v1"]}, 0)["v1"], 0.7, 16)
    q, k = torch.randn(1, 2, 128, 16), torch.randn(1, 1, 128, 16)
    angles = torch.arange(128)[:, None] * torch.ones(1, 16)
    layer = LayerContext(0, q, k, lambda positions: (angles[positions].cos(), angles[positions].sin()))
    assert joint.plan(q, k, layer).density() < 0.4


def test_cosine_schedule():
    assert [round(cosine_at(step, 10, 2), 3) for step in (0, 1, 2, 6, 10)] == [0.5, 1.0, 1.0, 0.5, 0.0]
