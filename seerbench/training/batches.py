"""batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from seerbench.data.lookups import TRAINING, Pieces, pieces_of, training_lookups, training_repeats
from seerbench.data.tokens import bos_of
from seerbench.data.windows import packed, packed_rows, rows_of_step, training_windows
from seerbench.training.jobs import DistillJob, FinetuneJob, Mix, MixChange, Stage


class Step(NamedTuple):
    """What one step of pre-training reads."""

    context: int  # tokens per window
    windows: int
    mix: MixChange | None


def schedule(stages: Sequence[Stage]) -> list[Step]:
    """Return what every step of the stages reads.

    The steps of a stage with several lengths take them in turn: a model that sees long windows alone forgets how to
    look things up at the first positions.
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
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return one batch: corpus windows, then repeats and look-ups in the shares that the mix asks for.

    Args:
        stream: int32 tokens of the corpus, documents end to end.
        pieces: what look-ups are put together from.
        context: tokens per window.
        windows: windows per batch.
        vocab: number of tokens that repeats are drawn from.

    Returns:
        tokens int32 and loss weights float32, both [windows, context], and the number of corpus windows.
    """
    kinds = ("repeat", "passkey", "kv")
    # Shares of few windows are met on average, not every step.
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
    return np.concatenate(tokens), np.concatenate(weights), corpus


def batches(
    job: DistillJob | FinetuneJob, documents: Mapping[str, np.ndarray], tokenizer: Any
) -> Callable[[int], tuple[np.ndarray, np.ndarray, int]]:
    """Return the function that gives the batch of any step of a distillation or fine-tuning.

    A batch depends on the step alone, so that a run can resume. The function gives what `mixed_batch` gives.

    Args:
        documents: id -> tokens, from `read_tokens`.
    """
    context, count, seed = job.context, job.batch, job.seed
    if job.packing is not None:
        eos = tokenizer.eos_token_id
        pad = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        rows = packed_rows(documents, context, job.packing, bos=bos_of(tokenizer), eos=eos, pad=pad)
        weights = np.ones((count, context), dtype=np.float32)
        return lambda step: (rows_of_step(rows, step, count, seed), weights, count)
    stream, pieces, mix = packed(documents, tokenizer.eos_token_id), pieces_of(tokenizer), job.mix
    if mix is None:
        raise ValueError(f"the training {job.name} has neither mix nor packing")

    def mixed(step: int) -> tuple[np.ndarray, np.ndarray, int]:
        rng = np.random.default_rng([seed, TRAINING, step])
        return mixed_batch(stream, pieces, context, count, mix, rng, len(tokenizer))

    return mixed
