"""Make the batch of any step of a training: windows of the corpus, look-ups and repeats.

A batch depends on the number of its step alone, so a training that was killed continues with the batches that it
has not seen. The windows and look-ups themselves are made in seerbench/data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from seerbench.data.lookup_parts import TRAINING, Pieces, pieces_of
from seerbench.data.lookups import training_lookups, training_repeats
from seerbench.data.tokens import bos_of
from seerbench.data.windows import packed, packed_rows, rows_of_step, training_windows
from seerbench.training.jobs import DistillJob, FinetuneJob, Mix, MixChange, PretrainJob, Stage


class Batch(NamedTuple):
    """The windows of one step, those of the corpus first."""

    tokens: np.ndarray  # int32 [windows, context]
    weights: np.ndarray  # float32 [windows, context], the weight of each token's loss
    corpus_windows: int


class Step(NamedTuple):
    """The shape and the mix of the batch of one step."""

    context: int  # tokens per window
    windows: int
    mix: MixChange | None


def schedule(stages: Sequence[Stage]) -> list[Step]:
    """Return the shape and mix of the batch of every step.

    The steps of a training stage with several lengths take the lengths in turn, because a model that is trained on
    long windows alone gets worse at look-ups in the first positions.
    """
    plan: list[Step] = []
    for stage in stages:
        steps = stage.steps or math.ceil((stage.tokens or 0) / stage.batch_tokens)
        for step in range(steps):
            context = stage.contexts[step % len(stage.contexts)]
            plan.append(Step(context, max(1, stage.batch_tokens // context), stage.mix))
    return plan


def mixed_batch(
    stream: np.ndarray,
    pieces: Pieces,
    context: int,
    windows: int,
    mix: Mix,
    rng: np.random.Generator,
    vocab: int,
) -> Batch:
    """Return one batch: windows of the corpus, then repeats and look-ups in the shares of the mix.

    Args:
        stream: int32 tokens of the corpus, documents end to end.
        pieces: parts of look-ups as tokens.
        context: tokens per window.
        windows: windows per batch.
        mix: shares of repeats and look-ups; if a batch has few windows, the mean over steps has these shares.
        rng: decides everything that is random.
        vocab: number of tokens that repeats are drawn from.
    """
    kinds = ("repeat", "passkey", "kv")
    exact = np.array([windows * share for share in (mix.repeat, mix.passkey, mix.kv)])
    counts = np.floor(exact + rng.random(len(kinds))).astype(int)
    while counts.sum() > windows:
        counts[counts.argmax()] -= 1
    corpus = windows - int(counts.sum())
    tokens = []
    weights = []
    if corpus:
        tokens.append(training_windows(stream, context, corpus, rng, bos=pieces.bos))
        weights.append(np.ones((corpus, context), dtype=np.float32))
    for kind, count in zip(kinds, counts, strict=True):
        if not count:
            continue
        if kind == "repeat":
            part = training_repeats(
                stream,
                pieces,
                context,
                count,
                rng,
                vocab=vocab,
                length=mix.repeat_length,
                apart=mix.repeat_apart,
            )
        else:
            part = training_lookups(stream, pieces, context, count, rng, task=kind, answer_weight=mix.answer_weight)
        tokens.append(part[0])
        weights.append(part[1])
    return Batch(np.concatenate(tokens), np.concatenate(weights), corpus)


def scheduled_batches(
    job: PretrainJob, plan: Sequence[Step], stream: np.ndarray, tokenizer: Any
) -> Callable[[int], Batch]:
    """Return the function that makes the batch of any step of a pre-training.

    Args:
        job: gives the seed and the mix, which training stages may change.
        plan: from `schedule`.
        stream: int32 tokens of the corpus, documents end to end.
        tokenizer: that of the corpus.
    """
    pieces = pieces_of(tokenizer)

    def batch_of(step: int) -> Batch:
        context, windows, change = plan[step]
        rng = np.random.default_rng([job.seed, TRAINING, step])
        return mixed_batch(stream, pieces, context, windows, job.mix.changed_by(change), rng, len(tokenizer))

    return batch_of


def batches(
    job: DistillJob | FinetuneJob, documents: Mapping[str, np.ndarray], tokenizer: Any
) -> Callable[[int], Batch]:
    """Return the function that makes the batch of any step of a distillation or fine-tuning.

    Args:
        job: gives the seed, the context, and either a mix or a packing.
        documents: id -> tokens, from `read_tokens`.
        tokenizer: that of the corpus.
    """
    context, count, seed = job.context, job.batch, job.seed
    if job.packing is not None:
        eos = tokenizer.eos_token_id
        pad = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        rows = packed_rows(documents, context, job.packing, bos=bos_of(tokenizer), eos=eos, pad=pad)
        weights = np.ones((count, context), dtype=np.float32)
        return lambda step: Batch(rows_of_step(rows, step, count, seed), weights, count)
    stream, pieces, mix = packed(documents, tokenizer.eos_token_id), pieces_of(tokenizer), job.mix
    if mix is None:
        raise ValueError(f"the training {job.name} has neither mix nor packing")

    def batch_of(step: int) -> Batch:
        rng = np.random.default_rng([seed, TRAINING, step])
        return mixed_batch(stream, pieces, context, count, mix, rng, len(tokenizer))

    return batch_of
