"""batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from seerbench.data.lookups import TRAINING, pieces_of, training_lookups, training_repeats
from seerbench.data.tokens import bos_of
from seerbench.data.windows import packed, packed_rows, rows_of_step, training_windows


def schedule(stages: Sequence[Mapping]) -> list[Mapping]:
    """The stage of every step, with one context each.

    A stage has context (tokens of a window, or a list that its steps take in turn: a model that sees long windows
    alone forgets how to look things up at the first positions), batch_tokens, and tokens or steps.
    """
    plan: list[Mapping] = []
    for stage in stages:
        steps = stage.get("steps") or math.ceil(stage["tokens"] / stage["batch_tokens"])
        contexts = stage["context"] if isinstance(stage["context"], list) else [stage["context"]]
        plan += [{**stage, "context": contexts[step % len(contexts)]} for step in range(steps)]
    return plan


def mixed_batch(
    stream: np.ndarray,
    pieces: object,
    stage: Mapping,
    mix: Mapping,
    rng: np.random.Generator,
    vocab: int,
) -> tuple[np.ndarray, np.ndarray, int]:
    """One batch: corpus windows, then repeats and look-ups in the shares that the mix asks for.

    Returns:
        tokens int32 and loss weights float32, both [windows, context], and the number of corpus windows.
    """
    context = stage["context"]
    windows = max(1, stage["batch_tokens"] // context)
    kinds = ("repeat", "passkey", "kv")
    # Shares of few windows are met on average, not every step.
    exact = np.array([windows * mix[kind] for kind in kinds])
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
                length=tuple(mix["repeat_length"]),
                apart=mix["repeat_apart"],
            )
        else:
            part = training_lookups(
                stream, pieces, context, count, rng, task=kind, answer_weight=mix["answer_weight"]
            )
        tokens.append(part[0])
        weights.append(part[1])
    return np.concatenate(tokens), np.concatenate(weights), corpus


def batches(
    config: Mapping, documents: Mapping[str, np.ndarray], tokenizer: object, seed: int
) -> Callable[[int], tuple[np.ndarray, np.ndarray, int]]:
    """The batch of any step of a distillation or fine-tuning: a function of the step, so that a run can resume.

    Args:
        config: context, batch (windows a step), and packing (documents at a time, `corpus.packed_rows`) or mix.
        documents: id -> tokens, from `corpus.read_tokens`.

    Returns:
        A function of the step, which gives what `mixed_batch` gives.
    """
    context, count = config["context"], config["batch"]
    if "packing" in config:
        eos = tokenizer.eos_token_id
        pad = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        rows = packed_rows(documents, context, config["packing"], bos=bos_of(tokenizer), eos=eos, pad=pad)
        weights = np.ones((count, context), dtype=np.float32)
        return lambda step: (rows_of_step(rows, step, count, seed), weights, count)
    stream, pieces = packed(documents, tokenizer.eos_token_id), pieces_of(tokenizer)
    stage = {"context": context, "batch_tokens": count * context}

    def mixed(step: int) -> tuple[np.ndarray, np.ndarray, int]:
        rng = np.random.default_rng([seed, TRAINING, step])
        return mixed_batch(stream, pieces, stage, config["mix"], rng, len(tokenizer))

    return mixed
