"""Windows of tokens: what perplexity is measured on, and what trainings read."""

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
    reaching: int | None = None,
) -> dict[str, np.ndarray]:
    """Return the windows that perplexity is measured on: one per document.

    A window is BOS and the document's first `context - 1` tokens. Only documents of at least `longest`
    tokens count, and of those the first `documents` in the corpus' order, so that every context is
    measured on the same documents (the paper's procedure). Perplexity is exp of the mean over documents
    of the mean negative log-likelihood of the `context - 1` tokens that follow BOS.

    Args:
        tokens: id -> tokens of one split, from `read_tokens`.
        context: window length in tokens, BOS included.
        documents: the largest number of documents; None takes all.
        longest: the longest context that the run evaluates.
        bos: id of the BOS token.
        reaching: also leave out documents of fewer tokens (in the paper 131,072, whatever context is evaluated).

    Returns:
        id -> int32 window [context].

    Raises:
        CorpusError: no document reaches `longest`, or `context` is longer than `longest`.
    """
    if context > longest:
        raise CorpusError(f"a context of {context} tokens is longer than the longest evaluated, {longest}")
    enough = max(longest, reaching or 0)
    chosen = [name for name, document in tokens.items() if len(document) >= enough][:documents]
    if not chosen:
        most = max((len(document) for document in tokens.values()), default=0)
        raise CorpusError(
            f"no document reaches a context of {enough} tokens: the longest has {most}; lower the config's"
            " contexts, or choose a corpus with longer documents"
        )
    return {name: with_bos(tokens[name][: context - 1], bos) for name in chosen}


def packed(tokens: Mapping[str, np.ndarray], eos: int) -> np.ndarray:
    """Return the documents of a split as one int32 stream with EOS after each; training windows are cut from it."""
    parts = []
    for document in tokens.values():
        parts += [document, np.array([eos], dtype=np.int32)]
    return np.concatenate(parts).astype(np.int32)


def packed_rows(
    tokens: Mapping[str, np.ndarray], context: int, documents: int, *, bos: int, eos: int, pad: int
) -> np.ndarray:
    """Return training windows as the SeerAttention authors pack them: int32 [rows, context].

    Groups of `documents` documents are joined, with BOS before the first and EOS between two. Each group is padded
    with `pad` to whole rows of `context` tokens and cut into them. A row may begin inside a document, and padding
    is trained on like text. The authors tokenize the joined text, which gives the same tokens, since a tokenizer
    splits at EOS.
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
    """Return the rows [batch, context] of one training step: every row once, shuffled, before any comes again."""
    places = np.arange(step * batch, (step + 1) * batch)
    epochs = {epoch: np.random.default_rng([seed, epoch]).permutation(len(rows)) for epoch in places // len(rows)}
    return np.stack([rows[epochs[place // len(rows)][place % len(rows)]] for place in places])


def training_windows(
    stream: np.ndarray, context: int, count: int, rng: np.random.Generator, *, bos: int
) -> np.ndarray:
    """Cut `count` windows at random places of a packed stream: int32 [count, context], BOS first.

    Raises:
        CorpusError: the stream is shorter than one window.
    """
    if len(stream) < context:
        raise CorpusError(f"no document reaches a context of {context} tokens: the whole split has {len(stream)}")
    starts = rng.integers(0, len(stream) - context + 2, size=count)
    return np.stack([with_bos(stream[start : start + context - 1], bos) for start in starts])


def with_bos(tokens: np.ndarray, bos: int) -> np.ndarray:
    """Return BOS followed by the tokens, int32."""
    return np.concatenate([[bos], tokens]).astype(np.int32)
