"""Cut the tokens of documents into windows of one length, for evaluation and for training.

Perplexity and the offline searches use `evaluation_windows`; training/batches.py uses the others.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from seerbench.errors import CorpusError


def evaluation_windows(
    tokens: Mapping[str, np.ndarray],
    context: int,
    documents: int | None,
    *,
    longest: int,
    bos: int,
    min_tokens: int | None = None,
) -> dict[str, np.ndarray]:
    """Return the windows on which perplexity is measured, one per document.

    A window is BOS and the document's first `context - 1` tokens. As in the paper, every context is measured on
    the same documents: the first ones, in the order of the corpus, that have at least `longest` tokens. Perplexity
    is exp of the mean over documents of the mean negative log-likelihood of the `context - 1` tokens after BOS.

    Args:
        tokens: id -> tokens of one split, from `read_tokens`.
        context: tokens per window, BOS included.
        documents: the largest number of windows; None takes every document that is long enough.
        longest: the longest context that the run evaluates.
        bos: id of the BOS token.
        min_tokens: skip documents shorter than this even if they have `longest` tokens. The paper uses 131,072 at
            every context.

    Returns:
        id -> int32 window [context].

    Raises:
        CorpusError: no document is long enough, or `context` is longer than `longest`.
    """
    if context > longest:
        raise CorpusError(f"a context of {context} tokens is longer than the longest evaluated, {longest}")
    length = max(longest, min_tokens or 0)
    chosen = [name for name, document in tokens.items() if len(document) >= length][:documents]
    if not chosen:
        available = max((len(document) for document in tokens.values()), default=0)
        raise CorpusError(
            f"no document reaches a context of {length} tokens: the longest has {available}; lower the contexts of"
            " the preset, or choose a corpus with longer documents"
        )
    return {name: with_bos(tokens[name][: context - 1], bos) for name in chosen}


def packed(tokens: Mapping[str, np.ndarray], eos: int) -> np.ndarray:
    """Join the documents of a split into one stream of int32 tokens, with EOS after each document."""
    parts = []
    for document in tokens.values():
        parts += [document, np.array([eos], dtype=np.int32)]
    return np.concatenate(parts).astype(np.int32)


def packed_rows(
    tokens: Mapping[str, np.ndarray], context: int, documents: int, *, bos: int, eos: int, pad: int
) -> np.ndarray:
    """Pack documents into training windows as SeerAttention's authors do.

    Groups of documents are joined end to end, with BOS before the first and EOS between two. Each group is filled
    up with `pad` to a multiple of `context` tokens and cut into rows. A row may begin inside a document, and
    padding is trained on like text. The authors tokenize the joined text instead, which gives the same tokens,
    because a tokenizer splits at EOS.

    Args:
        tokens: id -> tokens of one split, from `read_tokens`.
        context: tokens per row.
        documents: documents per group.
        bos: id of the BOS token; `eos` and `pad` are those of the others.

    Returns:
        int32 [rows, context].
    """
    names = list(tokens)
    rows = []
    for start in range(0, len(names), documents):
        parts: list[np.ndarray] = [np.array([bos], dtype=np.int32)]
        for name in names[start : start + documents]:
            parts += [tokens[name], np.array([eos], dtype=np.int32)]
        stream = np.concatenate(parts[:-1]).astype(np.int32)
        filled = np.pad(stream, (0, -len(stream) % context), constant_values=pad)
        rows.append(filled.reshape(-1, context))
    return np.concatenate(rows)


def rows_of_step(rows: np.ndarray, step: int, batch: int, seed: int) -> np.ndarray:
    """Return the rows of one training step. Every row is used once, in random order, before any is used again.

    Args:
        rows: [rows, context], from `packed_rows`.
        step: number of the step.
        batch: rows per step.
        seed: of the order.

    Returns:
        [batch, context].
    """
    places = np.arange(step * batch, (step + 1) * batch)
    epochs = {epoch: np.random.default_rng([seed, epoch]).permutation(len(rows)) for epoch in places // len(rows)}
    return np.stack([rows[epochs[place // len(rows)][place % len(rows)]] for place in places])


def training_windows(
    stream: np.ndarray, context: int, count: int, rng: np.random.Generator, *, bos: int
) -> np.ndarray:
    """Cut windows at random places of a packed stream.

    Args:
        stream: int32 tokens, from `packed`.
        context: tokens per window, BOS included.
        count: number of windows.
        rng: draws the places.
        bos: id of the BOS token.

    Returns:
        int32 [count, context].

    Raises:
        CorpusError: the stream is shorter than one window.
    """
    if len(stream) < context:
        raise CorpusError(f"no document reaches a context of {context} tokens: the split has {len(stream)}")
    starts = rng.integers(0, len(stream) - context + 2, size=count)
    return np.stack([with_bos(stream[start : start + context - 1], bos) for start in starts])


def with_bos(tokens: np.ndarray, bos: int) -> np.ndarray:
    """Return the tokens after BOS, int32."""
    return np.concatenate([[bos], tokens]).astype(np.int32)
