"""Make retrieval tasks: does a model still use its context when a method skips most of it?

    passkey, kv, kv_shared, cloze         examples for evaluation, from held-out documents
    training_lookups, training_repeats    windows for training, from train text and with other codes

far_lookups.py has tasks that ask more of the rows in the middle of the text, lookup_tasks.py all of them by name.
measure/tasks.py scores the examples. training/batches.py mixes the windows into pre-training, because skipped
blocks cannot harm a small model that has not learned to use its context.

An example of this module has exactly `context` tokens, prompt and answer together, and ends with its answer. The
place of the answer's first occurrence is random, so the distances cover the window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from seerbench.data.lookup_parts import EVALUATION, KV_PAIRS, Example, Pieces, insert_facts, pieces_of, random_text
from seerbench.data.tokens import bos_of
from seerbench.data.windows import packed
from seerbench.errors import CorpusError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CODE_DIGITS = 5  # digits of a pass-key
CLOZE_CUE, CLOZE_ANSWER = 10, 2  # Tokens of a repeated span: the cue is shown and the answer is predicted.
CLOZE_PER_DOCUMENT = 4  # A document gives at most this many cloze examples.
SHARED_TOKENS = (
    128  # Prompts of `kv_shared` share the tokens in whole blocks of this size, the largest that is used.
)
TRAINING_QUESTIONS = 4  # A key-value window for training asks this many times, if it is long enough.


def passkey(
    tokens: Mapping[str, np.ndarray],
    tokenizer: PreTrainedTokenizerFast,
    context: int,
    count: int,
    seed: int,
) -> list[Example]:
    """Make examples that hide a code of five different digits in a document and ask for it at the end.

    `... \\n# the pass key is 41729\\n ... \\n# the pass key is ` -> 4 1 7 2 9. Because the digits differ, each of
    them determines the next: the task tests whether a model finds the place, and not whether it can count.

    Args:
        tokens: id -> tokens of a held-out split, from `read_tokens`.
        tokenizer: that of the tokens.
        context: tokens of every example.
        count: number of examples.
        seed: the same seed gives the same examples.
    """
    pieces, stream = pieces_of(tokenizer), packed(tokens, tokenizer.eos_token_id)
    rng = np.random.default_rng([seed, EVALUATION, context, 0])
    return [passkey_example(pieces, stream, context, rng) for _ in range(count)]


def kv(
    tokens: Mapping[str, np.ndarray],
    tokenizer: PreTrainedTokenizerFast,
    context: int,
    count: int,
    seed: int,
) -> list[Example]:
    """Make examples that hide eight key-value pairs in a document and ask for one value at the end.

    `... \\n# set KEY VALUE\\n ... \\n# set KEY` -> VALUE. Keys and values are random words of one token, all
    different.

    Args:
        tokens: id -> tokens of a held-out split, from `read_tokens`.
        tokenizer: that of the tokens.
        context: tokens of every example.
        count: number of examples.
        seed: the same seed gives the same examples.
    """
    pieces, stream = pieces_of(tokenizer), packed(tokens, tokenizer.eos_token_id)
    rng = np.random.default_rng([seed, EVALUATION, context, 1])
    return [kv_example(pieces, stream, context, rng) for _ in range(count)]


def kv_shared(
    tokens: Mapping[str, np.ndarray],
    tokenizer: PreTrainedTokenizerFast,
    context: int,
    count: int,
    seed: int,
) -> list[Example]:
    """Make key-value look-ups that differ between contexts in the rows between the pairs and the question alone.

    Prompts of all contexts that end in the same block of SHARED_TOKENS have the same question, and before that
    block the same pairs at the same places in the same text. A longer prompt has more text before its question.

    Args:
        tokens: id -> tokens of a held-out split, from `read_tokens`.
        tokenizer: that of the tokens.
        context: tokens of every example; the prompt has one token fewer.
        count: number of examples.
        seed: the same seed gives the same examples.

    Raises:
        CorpusError: the context or the corpus is too short.
    """
    pieces, stream = pieces_of(tokenizer), packed(tokens, tokenizer.eos_token_id)
    begin = (context - 2) // SHARED_TOKENS * SHARED_TOKENS  # where the block begins in which the prompt ends
    rng = np.random.default_rng([seed, EVALUATION, begin, 7])
    return [_kv_shared_example(pieces, stream, context, begin, rng) for _ in range(count)]


def cloze(
    tokens: Mapping[str, np.ndarray],
    tokenizer: PreTrainedTokenizerFast,
    context: int,
    count: int,
    seed: int,
) -> list[Example]:
    """Make examples that end with a span of a document that occurred once before, at least half a window earlier.

    The first CLOZE_CUE tokens of the span are shown and the last CLOZE_ANSWER predicted. Nothing is inserted: the
    window is the document's own text, cut to end with the second occurrence. Spans that also occur in another
    document of the split, or whose answer is one token twice, are left out.

    Args:
        tokens: id -> tokens of a held-out split, from `read_tokens`.
        tokenizer: that of the tokens.
        context: tokens of every example.
        count: number of examples.
        seed: the same seed gives the same examples.

    Raises:
        CorpusError: the split holds fewer than `count` such places.
    """
    bos, span = bos_of(tokenizer), CLOZE_CUE + CLOZE_ANSWER
    rng = np.random.default_rng([seed, EVALUATION, context, 2])
    documents = [document for document in tokens.values() if len(document) >= context - 1]
    hashes = [span_hashes(document, span) for document in documents]
    everywhere = [np.unique(span_hashes(document, span)) for document in tokens.values()]
    values, counts = np.unique(np.concatenate(everywhere), return_counts=True)
    shared = values[counts > 1]
    examples: list[Example] = []
    for number in rng.permutation(len(documents)):
        document = documents[number]
        taken: list[int] = []
        for first, second in rng.permutation(repeated_spans(hashes[number], shared, span, context)):
            end = second + span
            repeated = document[end - 2] == document[end - 1]
            close = any(abs(end - other) < 4 * span for other in taken)
            if len(taken) == CLOZE_PER_DOCUMENT or repeated or close:
                continue
            taken.append(end)
            window = np.concatenate([[bos], document[end - (context - 1) : end]]).astype(np.int32)
            start = context - CLOZE_ANSWER
            examples.append(Example("cloze", context, window, start, CLOZE_ANSWER, int(second - first), start))
    if len(examples) < count:
        raise CorpusError(
            f"the corpus holds {len(examples)} places for cloze at {context} tokens, and {count} examples are"
            " requested; lower that number, or choose a corpus with longer documents"
        )
    return examples[:count]


def span_hashes(document: np.ndarray, span: int) -> np.ndarray:
    """Return a hash of the `span` tokens at every place, uint64 [tokens - span + 1]; empty for a short document."""
    if len(document) < span:
        return np.zeros(0, dtype=np.uint64)
    odd = np.random.default_rng(0).integers(1, 2**63, size=span, dtype=np.uint64) | np.uint64(1)
    places = len(document) - span + 1
    wide = document.astype(np.uint64)
    return sum(wide[offset : offset + places] * odd[offset] for offset in range(span))


def repeated_spans(hashes: np.ndarray, shared: np.ndarray, span: int, context: int) -> np.ndarray:
    """Return the places of spans that occur exactly twice in the window that ends with the second occurrence.

    Args:
        hashes: uint64 of a document, from `span_hashes`.
        shared: hashes of spans that are left out.
        span: tokens per span.
        context: tokens per window; the two occurrences are at least half as far apart.

    Returns:
        int64 [places, 2]: the first tokens of both occurrences.
    """
    order = np.argsort(hashes, kind="stable")  # Equal spans become neighbors, in the order of their places.
    ordered = hashes[order]
    same = ordered[1:] == ordered[:-1]
    first, second = order[:-1][same], order[1:][same]
    # A third occurrence, before `first`, must be outside of the window; -1 if there is none.
    before = np.concatenate([[-1], np.where(same[:-1], order[:-2], -1)])[same] if len(same) else first
    begin = second + span - (context - 1)
    usable = (begin >= 0) & (first >= begin) & (before < begin) & (second - first >= context // 2)
    usable &= ~np.isin(hashes[first], shared)
    return np.stack([first[usable], second[usable]], axis=1)


def passkey_example(pieces: Pieces, stream: np.ndarray, context: int, rng: np.random.Generator) -> Example:
    """Return one pass-key example, with the code at a uniformly random place of the text.

    Args:
        pieces: parts of look-ups.
        stream: int32 tokens of documents, from `windows.packed`.
        context: tokens of the example.
        rng: decides everything that is random.

    Raises:
        CorpusError: the context or the stream is too short.
    """
    code = rng.permutation(pieces.digits)[:CODE_DIGITS]
    fact = np.concatenate([pieces.passkey, code, pieces.end])
    question = np.concatenate([pieces.passkey, code])
    length = context - 1 - len(fact) - len(question)
    if length < 1:
        raise CorpusError(f"a pass-key needs a context of {context - length + 1} tokens, not {context}")
    place = int(rng.integers(0, length + 1))
    text = insert_facts(random_text(stream, length, rng), [fact], np.array([place]))
    tokens = np.concatenate([[pieces.bos], text, question]).astype(np.int32)
    start = context - CODE_DIGITS
    distance = start - (1 + place + len(pieces.passkey))
    return Example("passkey", context, tokens, start, CODE_DIGITS, distance, start)


def kv_example(
    pieces: Pieces, stream: np.ndarray, context: int, rng: np.random.Generator, questions: int = 1
) -> Example:
    """Return one key-value example.

    Args:
        pieces: parts of look-ups.
        stream: int32 tokens of documents, from `windows.packed`.
        context: tokens of the example.
        rng: decides everything that is random.
        questions: how many values the window asks for; the example is the last question.

    Raises:
        CorpusError: the context or the stream is too short.
    """
    words = rng.choice(pieces.words, 2 * KV_PAIRS, replace=False)
    fact_length = len(pieces.kv) + 2 + len(pieces.end)
    question_length = len(pieces.kv) + 2
    pairs = min(KV_PAIRS, (context - 2 - questions * question_length) // fact_length)
    if pairs < 1:
        raise CorpusError(f"a key-value look-up needs more than {context} tokens")
    keys, values = words[:pairs], words[KV_PAIRS : KV_PAIRS + pairs]
    length = context - 1 - pairs * fact_length - questions * question_length
    facts = [np.concatenate([pieces.kv, [key, value], pieces.end]) for key, value in zip(keys, values, strict=True)]
    places = np.sort(rng.integers(0, length + 1, size=pairs))
    text = insert_facts(random_text(stream, length, rng), facts, places)
    chosen = rng.integers(0, pairs, size=questions)
    if questions <= pairs:
        chosen = rng.permutation(pairs)[:questions]
    ends = [np.concatenate([pieces.kv, [keys[pair], values[pair]]]) for pair in chosen]
    tokens = np.concatenate([[pieces.bos], text, *ends]).astype(np.int32)
    last = int(chosen[-1])
    distance = (context - 1) - (1 + int(places[last]) + last * fact_length + len(pieces.kv) + 1)
    return Example("kv", context, tokens, context - 1, 1, distance, context - 1)


def _kv_shared_example(
    pieces: Pieces, stream: np.ndarray, context: int, begin: int, rng: np.random.Generator
) -> Example:
    """Return one example of `kv_shared`, whose prompt ends in the block that begins at the token `begin`."""
    keys, values = rng.choice(pieces.words, (2, KV_PAIRS), replace=False)
    facts = [np.concatenate([pieces.kv, [key, value], pieces.end]) for key, value in zip(keys, values, strict=True)]
    question = len(pieces.kv) + 1
    shared = begin + 1 - question  # tokens that the shortest of the prompts has before its question, BOS included
    length = shared - 1 - sum(map(len, facts))
    if length < 1:
        raise CorpusError(f"kv-shared needs a context of at least {SHARED_TOKENS + 2} tokens, not {context}")
    places = np.sort(rng.integers(0, length + 1, size=KV_PAIRS))
    text = random_text(stream, length + SHARED_TOKENS, rng)
    asked = int(rng.integers(KV_PAIRS))
    before = insert_facts(text[: length + context - 1 - question - shared], facts, places)
    end = np.concatenate([pieces.kv, [keys[asked], values[asked]]])
    tokens = np.concatenate([[pieces.bos], before, end]).astype(np.int32)
    source = int(places[asked]) + asked * len(facts[0]) + len(pieces.kv) + 2
    start = context - 1
    return Example("kv-shared", context, tokens, start, 1, start - source, start)


def training_lookups(
    stream: np.ndarray,
    pieces: Pieces,
    context: int,
    count: int,
    rng: np.random.Generator,
    *,
    task: str,
    answer_weight: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Make look-ups in train text, with new codes every time.

    A weight belongs to the token that is predicted. Text has weight 1 and answers have `answer_weight`. The first
    occurrence of a code or value has weight 0, because nothing predicts it.

    Args:
        stream: int32 tokens of the train split, from `windows.packed`.
        pieces: parts of look-ups.
        context: tokens per window.
        count: number of windows.
        rng: decides everything that is random.
        task: passkey or kv.
        answer_weight: weight of an answer's tokens.

    Returns:
        tokens int32 and loss weights float32, both [count, context].
    """
    tokens = np.empty((count, context), dtype=np.int32)
    weights = np.ones((count, context), dtype=np.float32)
    for row in range(count):
        if task == "passkey":
            example = passkey_example(pieces, stream, context, rng)
            answers = context - CODE_DIGITS + np.arange(CODE_DIGITS)
            hidden = answers - example.distance
        else:
            questions = TRAINING_QUESTIONS if context >= 128 else 1
            example = kv_example(pieces, stream, context, rng, questions)
            answers = context - 1 - np.arange(questions) * (len(pieces.kv) + 2)
            hidden = np.isin(example.tokens, example.tokens[answers])
        tokens[row] = example.tokens
        weights[row, hidden] = 0
        weights[row, answers] = answer_weight
    return tokens, weights


def training_repeats(
    stream: np.ndarray,
    pieces: Pieces,
    context: int,
    count: int,
    rng: np.random.Generator,
    *,
    vocab: int,
    length: tuple[int, int],
    apart: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Make windows in which a random sequence of tokens occurs again.

    Some windows hold a sequence at the start and at the end, with text between; the others repeat a sequence to the
    end. The first occurrence has weight 0, because nothing predicts it, and so has the first token of the second
    occurrence.

    Args:
        stream: int32 tokens of the train split, from `windows.packed`.
        pieces: parts of look-ups.
        context: tokens per window.
        count: number of windows.
        rng: decides everything that is random.
        vocab: sequences are uniform over the tokens from 3 to vocab - 1.
        length: shortest and longest sequence, log-uniform between them and at most half a window.
        apart: share of the windows whose two occurrences are apart, with text between them.

    Returns:
        tokens int32 and loss weights float32, both [count, context].
    """
    tokens = np.empty((count, context), dtype=np.int32)
    weights = np.zeros((count, context), dtype=np.float32)
    low, high = (min(bound, (context - 1) // 2) for bound in length)
    for row in range(count):
        size = round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))
        sequence = rng.integers(3, vocab, size=size)
        tokens[row, 0] = pieces.bos
        if rng.random() < apart:
            text = random_text(stream, context - 1 - 2 * size, rng)
            tokens[row, 1:] = np.concatenate([sequence, text, sequence])
            weights[row, 1 + size :] = 1
            weights[row, -size] = 0
        else:
            tokens[row, 1:] = np.resize(sequence, context - 1)
            weights[row, 2 + size :] = 1
    return tokens, weights
