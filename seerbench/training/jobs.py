"""Define the settings of trainings, as presets write them, and one type of resolved job for each training.

    PretrainJob   a small language model from text
    DistillJob    gates on a frozen model
    FinetuneJob   a model whose context YaRN extends, dense or jointly with its gates

`seerbench.presets` makes the jobs from a preset, and the functions in this folder take them. This module imports no
torch, since presets are checked without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from seerbench.methods.decode_gate_config import DecodeGateConfig
from seerbench.methods.gate_config import GateConfig
from seerbench.models.model_source import ModelSource
from seerbench.settings import (
    Context,
    Count,
    Flag,
    Gain,
    Index,
    LearningRate,
    OneOf,
    Portion,
    Positive,
    Scale,
    Settings,
    Share,
)

ARCHITECTURES = ("llama", "mistral")


Heads = Annotated[int, Field(strict=True, ge=1, le=1024)]
HeadDim = Annotated[int, Field(strict=True, ge=2, le=1024, multiple_of=2)]
"""RoPE rotates pairs, so it is even; `presets.file` also asks for what the kernels of the device take."""


def require_even_groups(heads: int, kv_heads: int) -> None:
    """Raise ValueError unless the query heads split evenly over the key/value heads."""
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads do not split over {kv_heads} key/value heads")


class Optimizer(Settings):
    """Muon for matrices, AdamW for the rest; the learning rate warms up, is constant, then decays linearly."""

    muon_lr: LearningRate | None
    """learning rate of Muon, in AdamW's units; null: AdamW trains the matrices too, at adam_lr"""
    embed_lr: LearningRate
    """AdamW's learning rate of the input embeddings, and of tied ones"""
    adam_lr: LearningRate
    """AdamW's learning rate of everything else"""
    weight_decay: Portion
    betas: tuple[Share, Share]
    """AdamW's decay rates of the running means"""
    clip: Positive
    """largest norm of the gradient of all weights"""
    warmup: Count
    """steps of the warm-up"""
    decay_share: Portion
    """share of the steps over which the learning rate falls to zero"""


class MixChange(Settings):
    """Settings of the mix that one stage of pre-training changes."""

    repeat: Share | None = None
    """share of windows in which a random sequence of tokens occurs again"""
    passkey: Share | None = None
    """share of windows that end by asking for a pass key hidden in them"""
    kv: Share | None = None
    """share of windows that end by asking for the value of one of several keys"""
    repeat_length: tuple[Count, Count] | None = None
    """shortest and longest repeated sequence, in tokens"""
    repeat_apart: Portion | None = None
    """share of those windows whose two copies are at the start and at the end, with text between them"""
    answer_weight: Positive | None = None
    """weight of an answer's tokens in the loss"""


class Mix(Settings):
    """Shares of synthetic windows in the training batches; the rest is windows of the corpus."""

    repeat: Share
    """share of windows in which a random sequence of tokens occurs again"""
    passkey: Share
    """share of windows that end by asking for a pass key hidden in them"""
    kv: Share
    """share of windows that end by asking for the value of one of several keys"""
    repeat_length: tuple[Count, Count]
    """shortest and longest repeated sequence, in tokens"""
    repeat_apart: Portion
    """share of those windows whose two copies are at the start and at the end, with text between them"""
    answer_weight: Positive
    """weight of an answer's tokens in the loss"""

    @model_validator(mode="after")
    def _adds_up(self) -> Mix:
        synthetic = self.repeat + self.passkey + self.kv
        if synthetic > 1 + 1e-9:
            raise ValueError(f"repeat, passkey and kv are shares of the windows and sum to {synthetic:g}, above 1")
        if self.repeat_length[0] > self.repeat_length[1]:
            raise ValueError(f"repeat_length goes from {self.repeat_length[0]} down to {self.repeat_length[1]}")
        return self

    def changed_by(self, change: MixChange | None) -> Mix:
        """Return this mix with the settings that a training stage changes; raise ValueError if they do not fit."""
        if change is None:
            return self
        return Mix.model_validate(self.model_dump() | change.model_dump(exclude_none=True))


class Stage(Settings):
    """Some steps of pre-training with windows of one length, or of several in turn."""

    context: Context | Annotated[tuple[Context, ...], Field(min_length=1)]
    """tokens per window; the steps take the numbers of a list in turn"""
    batch_tokens: Count
    """tokens per step"""
    tokens: Count | None = None
    """how long the stage is, in tokens, instead of steps"""
    steps: Count | None = None
    """how long the stage is, in steps, instead of tokens"""
    mix: MixChange | None = None
    """settings of the model's mix that the stage changes"""

    @model_validator(mode="after")
    def _has_one_length(self) -> Stage:
        if (self.tokens is None) == (self.steps is None):
            raise ValueError("a stage has either tokens or steps")
        if self.batch_tokens < max(self.contexts):
            raise ValueError(f"batch_tokens {self.batch_tokens} is below the {max(self.contexts)} of one window")
        return self

    @property
    def contexts(self) -> tuple[int, ...]:
        """Return the lengths of the windows, in tokens."""
        return (self.context,) if isinstance(self.context, int) else self.context


class FirstWeights(Settings):
    """Structured initial weights of a small model, whose heads start close to what training is known to produce."""

    embed_std: Scale
    embed_shared: Scale
    """length of the direction that all embeddings share, relative to a token's own part"""
    head_std: Scale
    """standard deviation of the output embedding, unless it is tied"""
    copy_gain: Gain
    """gain with which every head copies what it attends to"""
    induction_heads: Index
    """number of key/value heads that look for what followed the current token before"""
    previous_gap: Scale
    """by how much the score of the preceding token exceeds that of its neighbors"""
    match_gain: Gain
    match_context: Positive
    """matching uses the RoPE frequencies that turn less than 1.5 radians over this many tokens"""


class Architecture(Settings):
    """The geometry of a model that is trained here, in the Llama or Mistral architecture."""

    architecture: Annotated[str, OneOf(ARCHITECTURES)] = "llama"
    layers: Annotated[int, Field(strict=True, ge=1, le=1000)]
    hidden: Annotated[int, Field(strict=True, ge=1, le=2**17)]
    heads: Heads
    """query heads"""
    kv_heads: Heads
    head_dim: HeadDim
    intermediate: Annotated[int, Field(strict=True, ge=1, le=2**20)]
    rope_theta: Annotated[float, Field(strict=True, allow_inf_nan=False, ge=1, le=1e12)]
    tied_embeddings: Flag
    positions: Context
    """the longest context of the model, in tokens"""
    first_weights: FirstWeights | None
    """null: transformers' own initial weights"""

    @model_validator(mode="after")
    def _fits_together(self) -> Architecture:
        require_even_groups(self.heads, self.kv_heads)
        induction = 0 if self.first_weights is None else self.first_weights.induction_heads
        if induction > self.kv_heads:
            raise ValueError(f"first_weights has {induction} induction_heads for {self.kv_heads} kv_heads")
        if induction and self.layers < 2:
            raise ValueError("first_weights with induction_heads needs two layers")
        return self


@dataclass(frozen=True)
class PretrainJob:
    """Pre-train a small model and save it as a Hugging Face folder.

    Attributes:
        name: the model's name in the preset.
        corpus, tokens: the corpus' name and its tokens (parquet), of which the train split is read.
        tokenizer: folder.
        init: folder of the model that this one continues; None starts from `architecture.first_weights`.
        out: model folder to write.
        rows: training rows to write.
        loss_chunk: tokens whose logits exist at a time.
        device: `cpu` (float32) or `cuda` (bfloat16 autocast).
    """

    name: str
    corpus: str
    tokens: Path
    tokenizer: Path
    init: Path | None
    architecture: Architecture
    optimizer: Optimizer
    mix: Mix
    stages: tuple[Stage, ...]
    loss_chunk: int
    checkpoint_seconds: float
    device: str
    seed: int
    out: Path
    rows: Path

    @property
    def init_files(self) -> list[Path]:
        """Return the file that exists once the model that this one continues is complete."""
        return [self.init / "config.json"] if self.init else []

    def identity(self) -> dict[str, Any]:
        """Return what decides the trained weights, as JSON; a checkpoint of another identity is not continued."""
        return {
            "architecture": self.architecture.model_dump(),
            "optimizer": self.optimizer.model_dump(),
            "mix": self.mix.model_dump(),
            "stages": [stage.model_dump() for stage in self.stages],
            "loss_chunk": self.loss_chunk,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class DistillJob:
    """Train gate sets on a frozen model.

    Attributes:
        name: the gate job's name in the preset.
        model: the frozen model.
        corpus, tokens: the corpus' name and its tokens (parquet), of which the train split is read.
        sets: the gates to train, by the name of their set; `untrained` keeps its initial weights.
        block: keys per block.
        context, batch: tokens per window, windows per step.
        mix: shares of synthetic windows, or None where rows are packed.
        packing: documents packed into rows at a time (`data.windows.packed_rows`), or None where a mix is given.
        processes: processes of torchrun, with a GPU each, that share every batch.
        device, dtype: of the model.
        out: gates (safetensors) to write.
        rows: training rows to write.
    """

    name: str
    model: ModelSource
    corpus: str
    tokens: Path
    sets: Mapping[str, GateConfig | DecodeGateConfig]
    block: int
    context: int
    batch: int
    mix: Mix | None
    packing: int | None
    steps: int
    learning_rate: float
    warmup: int
    checkpoint_seconds: float
    device: str
    dtype: str
    seed: int
    out: Path
    rows: Path
    processes: int = 1

    def identity(self) -> dict[str, Any]:
        """Return what decides the trained gates, as JSON; a checkpoint of another identity is not continued."""
        return {
            "model": _identity_of(self.model),
            "sets": {name: asdict(config) for name, config in self.sets.items()},
            "context": self.context,
            "batch": self.batch,
            "mix": self.mix and self.mix.model_dump(),
            "packing": self.packing,
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "warmup": self.warmup,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class FinetuneJob:
    """Extend a model's context with YaRN and train all its weights, dense or jointly with its gates.

    Attributes:
        name: the new model's name in the preset: `yarn`, or `joint-<sparsity>`.
        model: the model to extend.
        gates: the file with its warmed-up gates (set `v1`); None trains dense.
        sparsity: requested sparsity of the forward pass, fixed during training; None trains dense.
        corpus, tokens: the corpus' name and its tokens (parquet), of which the train split is read.
        block: tokens per block.
        factor: how many times longer YaRN makes the context.
        context, batch: tokens per window, windows per step.
        mix: shares of synthetic windows, or None where rows are packed.
        packing: documents packed into rows at a time, or None where a mix is given.
        loss_chunk: tokens whose logits exist at a time.
        recompute: whether a layer's activations are computed again in the backward pass, one window at a time.
        processes: processes of torchrun, with a GPU each, that share every batch.
        dtype: of the saved model; weights are trained in float32.
        out: model folder to write; joint training writes its gates into it as `gates.safetensors` (set `v1`).
        rows: training rows to write.
    """

    name: str
    model: ModelSource
    gates: Path | None
    sparsity: float | None
    corpus: str
    tokens: Path
    block: int
    factor: float
    context: int
    batch: int
    mix: Mix | None
    packing: int | None
    steps: int
    optimizer: Optimizer
    gate_learning_rate: float
    loss_chunk: int
    recompute: bool
    checkpoint_seconds: float
    device: str
    dtype: str
    seed: int
    out: Path
    rows: Path
    processes: int = 1

    def identity(self) -> dict[str, Any]:
        """Return what decides the trained weights, as JSON; a checkpoint of another identity is not continued."""
        return {
            "model": _identity_of(self.model),
            "sparsity": self.sparsity,
            "block": self.block,
            "factor": self.factor,
            "context": self.context,
            "batch": self.batch,
            "mix": self.mix and self.mix.model_dump(),
            "packing": self.packing,
            "steps": self.steps,
            "optimizer": self.optimizer.model_dump(),
            "gate_learning_rate": self.gate_learning_rate,
            "loss_chunk": self.loss_chunk,
            "recompute": self.recompute,
            "seed": self.seed,
        }


def _identity_of(model: ModelSource) -> dict[str, Any]:
    """Return what names a model, however the results folder of one that this run makes is written."""
    location = model.name if model.made_here else str(model.location)
    return {"location": location, "revision": model.revision, "yarn": model.yarn}
