"""Define what all look-ups are made of: the example as a type, the tokens of facts and questions, text around them.

lookups.py, far_lookups.py and passages.py make the examples from these parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from seerbench.data.tokens import bos_of
from seerbench.errors import CorpusError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

KV_PAIRS = 8  # key-value pairs in a window
WORD_LETTERS = 4  # Keys and values are words of at least this many letters.
# Evaluation and training draw from different random streams, also with one seed.
EVALUATION, TRAINING = 1, 2
# The text parts of `Pieces`, in its order.
TEXTS = ("\n# the pass key is ", "\n# set", "\n# let", "\n# value of", "\n# wanted", "\n# answer", "\n")


@dataclass(frozen=True)
class Example:
    """One question with its answer.

    The first `prefilled` tokens are the prompt, which runs through the method. If the answer is one of them, it is
    scored there, each of its tokens given those before it. Otherwise the answer is decoded after the prompt and
    after the tokens that are between the two: generated, or where it is `given`, each token predicted after the
    right ones before it.
    """

    task: str
    context: int
    tokens: np.ndarray  # int32 [context], BOS first
    answer_start: int
    answer_length: int
    distance: int  # tokens from the answer's first occurrence to its place
    prefilled: int
    given: bool = False

    @property
    def answer(self) -> np.ndarray:
        """Return the tokens to predict, int32 [answer_length]."""
        return self.tokens[self.answer_start : self.answer_start + self.answer_length]


@dataclass(frozen=True)
class Pieces:
    """The parts of look-ups as token ids of one tokenizer, each int32."""

    bos: int
    digits: np.ndarray  # [10], 0 to 9
    words: np.ndarray  # words that are one token: a space and at least WORD_LETTERS letters
    passkey: np.ndarray  # "\n# the pass key is ", which precedes a code
    kv: np.ndarray  # "\n# set", which precedes a key and its value
    let: np.ndarray  # "\n# let", which precedes a name and what it is set to
    value: np.ndarray  # "\n# value of", which precedes a name and the value at the end of its chain
    wanted: np.ndarray  # "\n# wanted", which precedes the key that will be asked for
    answer: np.ndarray  # "\n# answer", which precedes that key's value
    end: np.ndarray  # "\n"


def pieces_of(tokenizer: PreTrainedTokenizerFast) -> Pieces:
    """Return the parts of look-ups in the tokens of a tokenizer.

    Raises:
        CorpusError: a digit is not one token, or too few words are.
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
        if text and text[0] in "Ġ▁" and len(text) > WORD_LETTERS and text[1:].isascii() and text[1:].isalpha()
    ]
    if len(words) < 4 * KV_PAIRS:
        raise CorpusError(
            f"the tokenizer has {len(words)} words of one token; key-value look-ups need {4 * KV_PAIRS}: raise"
            " tokenizer.vocab"
        )
    as_ids = [np.array(part, dtype=np.int32) for part in (digits, words)]
    texts = [np.array(ids(text), dtype=np.int32) for text in TEXTS]
    return Pieces(bos_of(tokenizer), *as_ids, *texts)


def random_text(stream: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """Return `length` consecutive tokens from a random place of a packed stream, int32 [length].

    Raises:
        CorpusError: the stream is too short.
    """
    if len(stream) < length + 1:
        raise CorpusError(
            f"a look-up needs {length + 1} tokens of text, and the split has {len(stream)}; lower the context, or"
            " choose a corpus with longer documents"
        )
    start = rng.integers(0, len(stream) - length)
    return stream[start : start + length]


def insert_facts(text: np.ndarray, facts: list[np.ndarray], places: np.ndarray) -> np.ndarray:
    """Insert each fact into the text before the token at its place; the places ascend."""
    parts: list[np.ndarray] = []
    last = 0
    for fact, place in zip(facts, places, strict=True):
        parts += [text[last:place], fact]
        last = place
    return np.concatenate([*parts, text[last:]])
