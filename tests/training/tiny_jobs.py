"""Trainings small enough for a test: jobs with a few steps, changed by keyword."""

from dataclasses import replace
from pathlib import Path

from seerbench.methods.gate_config import GateConfig
from seerbench.models.model_source import ModelSource
from seerbench.training.jobs import DistillJob, FinetuneJob, Mix, Optimizer

MIX = Mix(repeat=0.0, passkey=0.0, kv=0.0, repeat_length=(8, 16), repeat_apart=0.5, answer_weight=1.0)
SETS = {
    "v1": GateConfig(block=16),
    "v2": GateConfig(block=16, k_pool="maxminavg", projection="single", recipe="v2"),
    "tall": GateConfig(block=16, block_q=32),
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


def distill_job(world: Path, out: Path, **changes) -> DistillJob:
    """Four steps on the model and the tokens in `world`."""
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
    """Two steps with Muon on the model and the tokens in `world`; joint, at a sparsity of 0.5, with gates."""
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
