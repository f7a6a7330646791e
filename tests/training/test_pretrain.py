"""Test that pre-training is reproducible, continues after SIGKILL, and never reads held-out text."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_jobs import MODEL
from transformers import AutoModelForCausalLM, AutoTokenizer

from seerbench.data import tokens as data_tokens
from seerbench.errors import TrainingDiverged
from seerbench.training import checkpoint as training_checkpoint
from seerbench.training import pretrain
from seerbench.training.jobs import Architecture, Mix, Optimizer, PretrainJob, Stage

OPTIMIZER = Optimizer(
    muon_lr=5e-3,
    adam_lr=5e-3,
    embed_lr=0.05,
    weight_decay=0.01,
    betas=(0.9, 0.95),
    clip=1.0,
    warmup=2,
    decay_share=0.3,
)
MIX = Mix(repeat=0.3, passkey=0.1, kv=0.0, repeat_length=(8, 16), repeat_apart=0.3, answer_weight=5.0)
STAGES = (
    {"context": 56, "steps": 6, "batch_tokens": 448},
    {"context": 64, "tokens": 3000, "batch_tokens": 512, "mix": {"repeat": 0.5}},
)


def train(folder, name, *, stages=STAGES, positions=64, seed=3, tokens=None, init=None):
    """Pre-train the model `name` in the folder; return the training rows."""
    job = PretrainJob(
        name=name,
        corpus="toy",
        tokens=tokens or folder / "tokens.parquet",
        tokenizer=folder / "tokenizer",
        init=init,
        architecture=Architecture.model_validate(MODEL | {"positions": positions}),
        optimizer=OPTIMIZER,
        mix=MIX,
        stages=tuple(Stage.model_validate(stage) for stage in stages),
        loss_chunk=200,
        checkpoint_seconds=0.0,
        device="cpu",
        seed=seed,
        out=folder / name,
        rows=folder / f"{name}.parquet",
    )
    return pretrain.pretrain(job)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    words = ["".join(word) for word in np.random.default_rng(1).choice(list("abcdefgh"), (70, 5))]
    chosen = np.random.default_rng(0).choice(words, (12, 300))
    frame = pd.DataFrame({"id": [f"d{row}" for row in range(12)], "text": [" ".join(row) for row in chosen]})
    frame["split"] = ["train"] * 8 + ["validation"] + ["test"] * 3
    train_texts = frame[frame["split"] == "train"]["text"].tolist()
    tokenizer = data_tokens.train_tokenizer(train_texts, 400, folder / "tokenizer")
    data_tokens.tokenize(frame, tokenizer, folder / "tokens.parquet", name="toy", source={}, read="toy")
    return folder


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.fixture(scope="module")
def undisturbed(setting):
    torch.set_num_threads(1)
    return setting / "undisturbed", train(setting, "undisturbed")


def test_it_learns_and_saves_a_loadable_model(setting, undisturbed):
    out, rows = undisturbed
    assert rows["step"].tolist() == list(range(12))  # 6 steps, then ceil(3000 / 512)
    assert rows["context"].tolist() == [56] * 6 + [64] * 6
    assert rows["tokens"].is_monotonic_increasing
    assert rows["loss"].tail(2).mean() < rows["loss"].head(2).mean() - 0.3
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.vocab_size == len(tokenizer)
    assert (setting / "undisturbed.checkpoint").exists()  # until the caller has written the rows
    assert not (setting / "undisturbed.tmp").exists()


def test_held_out_documents_never_reach_training(setting, undisturbed):
    """Replace every validation and test document, and check that the trained model is the same."""
    table = pq.read_table(setting / "tokens.parquet").to_pylist()
    for row in table:
        if row["split"] != "train":
            row["tokens"] = [5] * len(row["tokens"])
    other = setting / "other.parquet"
    pq.write_table(pa.Table.from_pylist(table, schema=data_tokens.TOKEN_SCHEMA), other)
    train(setting, "other", tokens=other)
    for name, value in weights(undisturbed[0]).items():
        torch.testing.assert_close(weights(setting / "other")[name], value, rtol=0, atol=0)


def test_a_killed_run_resumes_and_ends_the_same(setting, undisturbed):
    out = setting / "killed"
    code = (
        "import sys, pathlib, torch; torch.set_num_threads(1)\n"
        "from seerbench.training import pretrain\n"
        "from test_pretrain import train\n"
        "slow = pretrain.next_token_losses\n"
        "import time; pretrain.next_token_losses = lambda *a: (time.sleep(0.3), slow(*a))[1]\n"
        "train(pathlib.Path(sys.argv[1]), 'killed')\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(setting)], stderr=subprocess.DEVNULL, env=environment
    )
    checkpoint = setting / "killed.checkpoint" / "state.safetensors"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, "the training ended before it could be killed"
    process.kill()
    process.wait()
    assert checkpoint.exists()
    assert not out.exists()
    assert training_checkpoint.load_checkpoint(checkpoint, {}, [], digest="another run") == (0, [])
    rows = train(setting, "killed")
    pd.testing.assert_frame_equal(rows, undisturbed[1], check_exact=True)
    for name, value in weights(undisturbed[0]).items():
        torch.testing.assert_close(weights(out)[name], value, rtol=0, atol=0)


def test_steps_take_the_contexts_of_a_stage_in_turn(setting):
    """Check two window lengths with equal tokens per step, and that each training stage begins with its first."""
    stages = [{"context": [64, 32], "steps": 3}, {"context": 56, "steps": 1}]
    rows = train(setting, "turns", stages=[{**stage, "batch_tokens": 128} for stage in stages])
    assert rows["context"].tolist() == [64, 32, 64, 56]
    assert rows["tokens"].tolist() == [128, 256, 384, 384 + 112]


def test_init_continues_a_model(setting, undisturbed):
    out, stages = setting / "longer", [{"context": 128, "steps": 1, "batch_tokens": 512}]
    rows = train(setting, "longer", stages=stages, positions=128, init=undisturbed[0], seed=4)
    assert len(rows) == 1
    assert AutoModelForCausalLM.from_pretrained(out).config.max_position_embeddings == 128
    start, end = weights(undisturbed[0]), weights(out)
    moved = max((end[name] - start[name]).abs().max().item() for name in start)
    assert 0 < moved < 0.1


def test_a_training_that_diverges_stops_with_its_step(setting, monkeypatch):
    fast = OPTIMIZER.model_copy(update={"muon_lr": None, "adam_lr": 1e30, "embed_lr": 1e30})
    monkeypatch.setattr(sys.modules[__name__], "OPTIMIZER", fast)
    with pytest.raises(TrainingDiverged, match=r"wild diverged: the loss is \w+ at step [2-9];"):
        train(setting, "wild")
    assert not (setting / "wild").exists()
