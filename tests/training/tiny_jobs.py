"""Make trainings that are small enough for a test: a toy corpus, its model, and jobs of a few steps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from seerbench.data.tokens import tokenize, train_tokenizer
from seerbench.methods.decode_gate import load_decode_gates
from seerbench.methods.decode_gate_config import RECIPE, DecodeGateConfig
from seerbench.methods.gate_config import GateConfig
from seerbench.methods.gate_files import load_gates
from seerbench.models.model_source import ModelSource
from seerbench.training.jobs import DistillJob, FinetuneJob, Mix, Optimizer

FIRST_WEIGHTS = {
    "embed_std": 1.0,
    "embed_shared": 1.0,
    "head_std": 0.03,
    "copy_gain": 0.5,
    "induction_heads": 2,
    "previous_gap": 4.0,
    "match_gain": 2.0,
    "match_context": 2048,
}
MODEL = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 32, "intermediate": 64}
MODEL |= {"rope_theta": 500000.0, "tied_embeddings": False, "positions": 64, "first_weights": FIRST_WEIGHTS}
MIX = Mix(repeat=0.0, passkey=0.0, kv=0.0, repeat_length=(8, 16), repeat_apart=0.5, answer_weight=1.0)
SETS = {
    "v1": GateConfig(block=16),
    "v2": GateConfig(block=16, k_pool="maxminavg", projection="single", recipe="v2"),
    "tall": GateConfig(block=16, block_q=32),
    "token": GateConfig(block=16, q_pool="none", k_pool="maxminavg", projection="single", recipe="v2"),
    "r": DecodeGateConfig(block=16),
    "untrained": GateConfig(block=16),
}
OPTIMIZER = Optimizer(
    muon_lr=0.01,
    embed_lr=0.01,
    adam_lr=0.001,
    weight_decay=0.0,
    betas=(0.9, 0.95),
    clip=1.0,
    warmup=1,
    decay_share=0.5,
)

# The optimizer and the packing of SeerAttention's authors.
ADAM = {
    "mix": None,
    "packing": 3,
    "optimizer": OPTIMIZER.model_copy(update={"muon_lr": None, "adam_lr": 0.003, "embed_lr": 0.003}),
    "gate_learning_rate": 0.003,
}


def make_world(folder: Path) -> None:
    """Write a toy corpus, its tokenizer, and a toy Llama of two layers."""
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
    tokenize(texts, tokenizer, folder / "tokens.parquet", name="toy", source={"kind": "test"}, read="toy")
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


def gate_weights(path: Path, name: str) -> torch.Tensor:
    """Return all weights of a gate set in one vector."""
    gates = (load_decode_gates if name == RECIPE else load_gates)(path, name)
    return torch.cat([p.flatten() for gate in gates for p in gate.parameters()])


def distill_job(world: Path, out: Path, **changes) -> DistillJob:
    """Return a job of four steps on the model and the tokens in `world`."""
    job = DistillJob(
        name=out.name,
        model=ModelSource("model", world / "model"),
        corpus="toy",
        tokens=world / "tokens.parquet",
        sets=SETS,
        block=16,
        context=64,
        batch=2,
        mix=MIX,
        packing=None,
        steps=4,
        learning_rate=0.01,
        warmup=1,
        checkpoint_seconds=1000,
        device="cpu",
        dtype="float32",
        seed=0,
        out=out,
        rows=out.with_suffix(".parquet"),
    )
    return replace(job, **changes)


def finetune_job(world: Path, out: Path, gates: Path | None = None, **changes) -> FinetuneJob:
    """Return a job of two steps with Muon on the model in `world`; with gates it is joint, at a sparsity of 0.5."""
    job = FinetuneJob(
        name=out.name,
        model=ModelSource("model", world / "model"),
        gates=gates,
        sparsity=None if gates is None else 0.5,
        corpus="toy",
        tokens=world / "tokens.parquet",
        block=16,
        factor=4,
        context=128,
        batch=1,
        mix=MIX,
        packing=None,
        steps=2,
        optimizer=OPTIMIZER,
        gate_learning_rate=0.01,
        loss_chunk=1024,
        recompute=False,
        checkpoint_seconds=1000,
        device="cpu",
        dtype="float32",
        seed=0,
        out=out,
        rows=out.with_suffix(".parquet"),
    )
    return replace(job, **changes)
