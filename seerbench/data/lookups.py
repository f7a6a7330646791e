"""Look-up tasks: does a model still use its context when a method skips most of it?

`passkey`, `kv` and `cloze` make examples from held-out documents, which `measure/tasks.py` scores.
`training_lookups` and `training_repeats` make training windows of the same form, with other codes and from
training text. Trainings mix them in, because a small model that never had to look back has nothing that sparsity
could break.

An example has exactly `context` tokens and ends with its answer. It is scored teacher-forced, in one forward pass
over all tokens: it is right when the argmax at positions `answer_start - 1` to `context - 2` equals every answer
token. The place of the answer within the context is random, so that `distance` covers the window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from seerbench.data.tokens import bos_of
from seerbench.data.windows import packed
from seerbench.errors import CorpusError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


CODE_DIGITS = 5  # of a pass key
KV_PAIRS = 8  # in one window, of which one is asked for
CLOZE_CUE, CLOZE_ANSWER = 10, 2  # tokens of a repeated span: the cue is shown, the answer predicted
# Part of the seeds, so that evaluation and training draw from different streams of random numbers.
EVALUATION, TRAINING = 1, 2


@dataclass(frozen=True)
class Example:
    """One question: `tokens` int32 [context], BOS first, the answer at the end."""

    task: str
    context: int
    tokens: np.ndarray
    answer_start: int
    answer_length: int
    distance: int  # tokens between the answer's place in the context and its place at the end

    @property
    def answer(self) -> np.ndarray:
        """The tokens to predict: int32 [answer_length]."""
        return self.tokens[self.answer_start : self.answer_start + self.answer_length]


@dataclass(frozen=True)
class Pieces:
    """The parts that look-ups consist of, as token ids of one tokenizer."""

    bos: int
    digits: np.ndarray  # [10]: the ids of 0 to 9
    words: np.ndarray  # ids of whole words (a space and at least four letters)
    passkey: np.ndarray  # "\n# the pass key is ": what stands before a code
    kv: np.ndarray  # "\n# set": what stands before a key, which its value follows
    end: np.ndarray  # "\n"


def pieces_of(tokenizer: PreTrainedTokenizerFast) -> Pieces:
    """Tokenise the parts of look-ups once.

    Raises:
        CorpusError: the tokenizer has no single tokens for digits, or fewer than 32 whole words.
    """

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    digits = [ids(str(digit))[-1] for digit in range(10)]
    if any(tokenizer.decode([token]).strip() != str(digit) for digit, token in enumerate(digits)):
        raise CorpusError("the tokenizer has no single tokens for digits; pass-keys need them")
    vocab = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    words = [
        token
        for token, text in enumerate(vocab)
        if text and text[0] in "Ġ▁" and len(text) >= 5 and text[1:].isascii() and text[1:].isalpha()
    ]
    if len(words) < 4 * KV_PAIRS:
        raise CorpusError(
            f"the tokenizer has {len(words)} whole words; key-value look-ups need {4 * KV_PAIRS}:"
            " raise tokenizer.vocab"
        )
    as_ids = [np.array(part, dtype=np.int32) for part in (digits, words)]
    texts = [np.array(ids(text), dtype=np.int32) for text in ("\n# the pass key is ", "\n# set", "\n")]
    return Pieces(bos_of(tokenizer), *as_ids, *texts)


def passkey(
    tokens: Mapping[str, np.ndarray],
    tokenizer: PreTrainedTokenizerFast,
    context: int,
    count: int,
    seed: int,
) -> list[Example]:
    """Make examples that ask at the end for a code of five different digits hidden in a document.

    `... \\n# the pass key is 41729\\n ... \\n# the pass key is ` -> 4 1 7 2 9. The digits are different so
    that each names its successor: the task tests whether the place is found, not whether a model can count.

    Args:
        tokens: id -> tokens of a held-out split, from `read_tokens`.
        context: tokens per example.
        count: number of examples.
        seed: equal seeds give equal examples.
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
    """Make examples that ask at the end for one of eight key-value pairs scattered over a document.

    `... \\n# set KEY VALUE\\n ... \\n# set KEY` -> VALUE; keys and values are random words of one token,
    all different. Arguments as in `passkey`.
    """
    pieces, stream = pieces_of(tokenizer), packed(tokens, tokenizer.eos_token_id)
    rng = np.random.default_rng([seed, EVALUATION, context, 1])
    return [kv_example(pieces, stream, context, rng) for _ in range(count)]


def cloze(
    tokens: Mapping[str, np.ndarray],
    tokenizer: PreTrainedTokenizerFast,
    context: int,
    count: int,
    seed: int,
) -> list[Example]:
    """Make examples that end with a span of a real document which occurs once before, at least half a window back.

    The span has twelve tokens; the first ten are shown and the last two predicted. Nothing is
    inserted: the window is the document's own text, cut to end with the span's second occurrence. Spans
    that also occur in another document of the split, or whose answer is the same token twice, are left out,
    and a document gives at most four examples.

    Raises:
        CorpusError: the split holds fewer than `count` such places. Other arguments as in `passkey`.
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
            varied = document[end - 2] != document[end - 1]
            if len(taken) == 4 or not varied or any(abs(end - other) < 4 * span for other in taken):
                continue
            taken.append(end)
            window = np.concatenate([[bos], document[end - (context - 1) : end]]).astype(np.int32)
            start = context - CLOZE_ANSWER
            examples.append(Example("cloze", context, window, start, CLOZE_ANSWER, int(second - first)))
    if len(examples) < count:
        raise CorpusError(
            f"the corpus holds {len(examples)} places for cloze at {context} tokens, {count} were asked;"
            " lower the number of examples or choose a corpus with longer documents"
        )
    return examples[:count]


def span_hashes(document: np.ndarray, span: int) -> np.ndarray:
    """Return a hash of the `span` tokens at every place: uint64 [tokens - span + 1], empty for a short document."""
    if len(document) < span:
        return np.zeros(0, dtype=np.uint64)
    odd = np.random.default_rng(0).integers(1, 2**63, size=span, dtype=np.uint64) | np.uint64(1)
    places = len(document) - span + 1
    wide = document.astype(np.uint64)
    return sum(wide[offset : offset + places] * odd[offset] for offset in range(span))


def repeated_spans(hashes: np.ndarray, shared: np.ndarray, span: int, context: int) -> np.ndarray:
    """Return the places (first, second) of spans that a window ending with the second holds exactly twice.

    They are at least half a context apart, and no span is in `shared`. Returns int64 [places, 2].
    """
    order = np.argsort(hashes, kind="stable")  # equal spans side by side, each group in ascending places
    ordered = hashes[order]
    same = ordered[1:] == ordered[:-1]
    first, second = order[:-1][same], order[1:][same]
    # The occurrence before `first`, where there is one, must lie before the window.
    before = np.concatenate([[-1], np.where(same[:-1], order[:-2], -1)])[same] if len(same) else first
    begin = second + span - (context - 1)
    kept = (begin >= 0) & (first >= begin) & (before < begin) & (second - first >= context // 2)
    kept &= ~np.isin(hashes[first], shared)
    return np.stack([first[kept], second[kept]], axis=1)


TASKS: dict[str, Callable[..., list[Example]]] = {"passkey": passkey, "kv": kv, "cloze": cloze}


def filler(stream: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """Return text from a random place of a packed stream: int32 [length]."""
    if len(stream) < length + 1:
        raise CorpusError(f"no document reaches a context of {length} tokens: the split has {len(stream)}")
    start = rng.integers(0, len(stream) - length)
    return stream[start : start + length]


def scattered(text: np.ndarray, facts: list[np.ndarray], places: np.ndarray) -> np.ndarray:
    """Insert fact i into the text before its token `places[i]` (ascending)."""
    parts, last = [], 0
    for fact, place in zip(facts, places, strict=True):
        parts += [text[last:place], fact]
        last = place
    return np.concatenate([*parts, text[last:]])


def passkey_example(pieces: Pieces, stream: np.ndarray, context: int, rng: np.random.Generator) -> Example:
    """Make one pass-key window; the code's place is uniform over the text."""
    code = rng.permutation(pieces.digits)[:CODE_DIGITS]
    fact = np.concatenate([pieces.passkey, code, pieces.end])
    question = np.concatenate([pieces.passkey, code])
    length = context - 1 - len(fact) - len(question)
    if length < 1:
        raise CorpusError(f"a pass-key needs a context of {context - length + 1} tokens, not {context}")
    place = int(rng.integers(0, length + 1))
    text = scattered(filler(stream, length, rng), [fact], np.array([place]))
    tokens = np.concatenate([[pieces.bos], text, question]).astype(np.int32)
    start = context - CODE_DIGITS
    distance = start - (1 + place + len(pieces.passkey))
    return Example("passkey", context, tokens, start, CODE_DIGITS, distance)


def kv_example(
    pieces: Pieces, stream: np.ndarray, context: int, rng: np.random.Generator, questions: int = 1
) -> Example:
    """Make one key-value window; with several `questions` (training only) the example is the last of them."""
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
    text = scattered(filler(stream, length, rng), facts, places)
    asked = rng.integers(0, pairs, size=questions)
    if questions <= pairs:
        asked = rng.permutation(pairs)[:questions]
    ends = [np.concatenate([pieces.kv, [keys[one], values[one]]]) for one in asked]
    tokens = np.concatenate([[pieces.bos], text, *ends]).astype(np.int32)
    last = int(asked[-1])
    distance = (context - 1) - (1 + int(places[last]) + last * fact_length + len(pieces.kv) + 1)
    return Example("kv", context, tokens, context - 1, 1, distance)


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
    """Make look-ups in training text, with new codes each time.

    Returns tokens int32 and loss weights float32, both [count, context]. A weight belongs to the token that is
    predicted: 1 for text, `answer_weight` for answers, 0 for the first occurrence of a code or value, which nothing
    predicts. A key-value window asks up to four times.

    Args:
        task: passkey or kv.
    """
    tokens = np.empty((count, context), dtype=np.int32)
    weights = np.ones((count, context), dtype=np.float32)
    for row in range(count):
        if task == "passkey":
            example = passkey_example(pieces, stream, context, rng)
            answers = context - CODE_DIGITS + np.arange(CODE_DIGITS)
            hidden = answers - example.distance
        else:
            questions = 4 if context >= 128 else 1
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
    """Make windows with random sequences that come again.

    Returns tokens int32 and loss weights float32, both [count, context]. A share `apart` of the windows holds one
    sequence at the start and at the end with text between; the others repeat theirs to the end. Random tokens have
    weight from their second occurrence on, since nothing predicts the first.

    Args:
        vocab: sequences are uniform over the tokens from 3 to vocab - 1.
        length: shortest and longest sequence, log-uniform between; cut to half the window.
    """
    tokens = np.empty((count, context), dtype=np.int32)
    weights = np.zeros((count, context), dtype=np.float32)
    low, high = (min(bound, (context - 1) // 2) for bound in length)
    for row in range(count):
        size = round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))
        sequence = rng.integers(3, vocab, size=size)
        tokens[row, 0] = pieces.bos
        # The first token of a second occurrence is as unpredictable as those of the first.
        if rng.random() < apart:
            text = filler(stream, context - 1 - 2 * size, rng)
            tokens[row, 1:] = np.concatenate([sequence, text, sequence])
            weights[row, 1 + size :] = 1
            weights[row, -size] = 0
        else:
            tokens[row, 1:] = np.resize(sequence, context - 1)
            weights[row, 2 + size :] = 1
    return tokens, weights
