"""Make look-ups that rows in the middle of the text answer, or that are not known when blocks are chosen.

    midtext           questions with their answers in the middle of the text, scored during the sparse prefill
    tracking          a value passes from name to name through the text, and the last name's is asked for
    question_first    the question is before the text and its answer is asked for at the end
    two_questions     a second question after the prompt, which no method has seen when it chooses blocks

A pass-key or key-value look-up is answered by the last rows of the prompt: a method that keeps them dense answers
it whatever else it skips. In `midtext` such rows see nothing of what is scored. In `tracking` and `question_first`
the last rows can see everything, but a model that joins facts where it reads them needs the rows in the middle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from seerbench.data.lookup_parts import EVALUATION, KV_PAIRS, Example, Pieces, insert_facts, pieces_of, random_text
from seerbench.data.lookups import kv_example
from seerbench.data.windows import packed
from seerbench.errors import CorpusError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MIDTEXT_QUESTIONS = 4  # questions per window
# Facts are in the first part of a window's text; questions are between the second number and the third.
MIDTEXT_FACTS, MIDTEXT_FIRST, MIDTEXT_LAST = 3 / 8, 1 / 2, 7 / 8
CHAINS = 4  # chains of names in a window; one of them is asked for
LINKS = 3  # names per chain: the first is set to a value, every other to the name before it
QUESTION_WITHIN = 1 / 8  # A question that comes first is in this first part of the text.


def midtext(
    tokens: Mapping[str, np.ndarray],
    tokenizer: PreTrainedTokenizerFast,
    context: int,
    count: int,
    seed: int,
) -> list[Example]:
    """Make windows with eight key-value pairs, and four questions with their answers in the middle of the text.

    `... \\n# set KEY VALUE\\n ... \\n# set KEY` -> `VALUE\\n ...`. The pairs are in the first three eighths of the
    text and the questions between its half and seven eighths, so each asks a row far from its pair, and the rows at
    the end of the window ask nothing.

    Args:
        tokens: id -> tokens of a held-out split, from `read_tokens`.
        tokenizer: that of the tokens.
        context: tokens of every window.
        count: number of windows.
        seed: the same seed gives the same windows.

    Returns:
        One example per question: `count` windows times MIDTEXT_QUESTIONS, those of one window in a row.

    Raises:
        CorpusError: the context or the corpus is too short.
    """
    made = _made(midtext_examples, 3, tokens, tokenizer, context, count, seed)
    return [example for examples in made for example in examples]


def tracking(
    tokens: Mapping[str, np.ndarray],
    tokenizer: PreTrainedTokenizerFast,
    context: int,
    count: int,
    seed: int,
) -> list[Example]:
    """Make examples of variable tracking: four chains of three names, of which one is asked for at the end.

    `... \\n# let A VALUE\\n ... \\n# let B A\\n ... \\n# let C B\\n ... \\n# value of C` -> VALUE. Names and values
    are random words of one token, all different. The arguments and errors are those of `midtext`, and `count` is
    the number of examples.
    """
    return _made(tracking_example, 4, tokens, tokenizer, context, count, seed)


def question_first(
    tokens: Mapping[str, np.ndarray],
    tokenizer: PreTrainedTokenizerFast,
    context: int,
    count: int,
    seed: int,
) -> list[Example]:
    """Make key-value look-ups whose key comes before the pairs, and whose answer is asked for at the end.

    `... \\n# wanted KEY\\n ... \\n# set KEY VALUE\\n ... \\n# answer` -> VALUE. The arguments and errors are those
    of `midtext`, and `count` is the number of examples.
    """
    return _made(question_first_example, 5, tokens, tokenizer, context, count, seed)


def two_questions(
    tokens: Mapping[str, np.ndarray],
    tokenizer: PreTrainedTokenizerFast,
    context: int,
    count: int,
    seed: int,
) -> list[Example]:
    """Make key-value look-ups with two questions, of which the prompt has the first.

    The first question's correct answer and the second question follow the prompt, token by token, so the blocks of
    the prompt are chosen without knowing the second question. Its answer alone is scored. The arguments and errors
    are those of `midtext`, and `count` is the number of examples.
    """
    return _made(two_questions_example, 6, tokens, tokenizer, context, count, seed)


def _made(
    make: Callable[..., Any],
    stream_of_task: int,
    tokens: Mapping[str, np.ndarray],
    tokenizer: PreTrainedTokenizerFast,
    context: int,
    count: int,
    seed: int,
) -> list[Any]:
    """Return `count` results of `make(pieces, stream, context, rng)`, with a random stream of the task's own."""
    pieces, stream = pieces_of(tokenizer), packed(tokens, tokenizer.eos_token_id)
    rng = np.random.default_rng([seed, EVALUATION, context, stream_of_task])
    return [make(pieces, stream, context, rng) for _ in range(count)]


def midtext_examples(pieces: Pieces, stream: np.ndarray, context: int, rng: np.random.Generator) -> list[Example]:
    """Return the questions of one window of `midtext`, in the order of the text.

    Args:
        pieces: parts of look-ups.
        stream: int32 tokens of documents, from `windows.packed`.
        context: tokens of the window.
        rng: decides everything that is random.

    Raises:
        CorpusError: the context or the stream is too short.
    """
    keys, values = rng.choice(pieces.words, (2, KV_PAIRS), replace=False)
    asked = rng.permutation(KV_PAIRS)[:MIDTEXT_QUESTIONS]
    order = [*range(KV_PAIRS), *asked]
    lines = [np.concatenate([pieces.kv, [keys[pair], values[pair]], pieces.end]) for pair in order]
    length = _text_length(context, lines, "midtext")
    facts = np.sort(rng.integers(0, int(MIDTEXT_FACTS * length) + 1, size=KV_PAIRS))
    first, last = int(MIDTEXT_FIRST * length), int(MIDTEXT_LAST * length)
    questions = np.sort(rng.integers(first, last + 1, size=MIDTEXT_QUESTIONS))
    places = np.concatenate([facts, questions])
    tokens = _window(pieces, stream, length, lines, places, rng)
    at = _ends(lines, places) - 1 - len(pieces.end)  # where every line's value is
    return [
        Example(
            "midtext",
            context,
            tokens,
            int(at[KV_PAIRS + number]),
            1,
            int(at[KV_PAIRS + number] - at[pair]),
            context,
        )
        for number, pair in enumerate(asked)
    ]


def tracking_example(pieces: Pieces, stream: np.ndarray, context: int, rng: np.random.Generator) -> Example:
    """Return one example of `tracking`; the arguments and errors are those of `midtext_examples`."""
    words = rng.choice(pieces.words, (CHAINS, LINKS + 1), replace=False)  # a chain's value, then its names
    order = rng.permutation(np.repeat(np.arange(CHAINS), LINKS))  # which chain each line of the text continues
    link = [int((order[:place] == chain).sum()) for place, chain in enumerate(order)]
    lines = [
        np.concatenate([pieces.let, words[chain, [number + 1, number]], pieces.end])
        for chain, number in zip(order, link, strict=True)
    ]
    asked = int(rng.integers(CHAINS))
    question = np.concatenate([pieces.value, words[asked, [LINKS, 0]]])
    length = _text_length(context, [*lines, question], "tracking")
    places = np.sort(rng.integers(0, length + 1, size=len(lines)))
    tokens = _window(pieces, stream, length, lines, places, rng, question)
    source = _ends(lines, places)[np.flatnonzero(order == asked)[0]] - 1 - len(pieces.end)
    start = context - 1
    return Example("tracking", context, tokens, start, 1, int(start - source), start)


def question_first_example(pieces: Pieces, stream: np.ndarray, context: int, rng: np.random.Generator) -> Example:
    """Return one example of `question_first`; the arguments and errors are those of `midtext_examples`."""
    keys, values = rng.choice(pieces.words, (2, KV_PAIRS), replace=False)
    asked = int(rng.integers(KV_PAIRS))
    question = np.concatenate([pieces.wanted, [keys[asked]], pieces.end])
    lines = [question]
    lines += [
        np.concatenate([pieces.kv, [key, value], pieces.end]) for key, value in zip(keys, values, strict=True)
    ]
    answer = np.concatenate([pieces.answer, [values[asked]]])
    length = _text_length(context, [*lines, answer], "question-first")
    first = int(rng.integers(0, int(QUESTION_WITHIN * length) + 1))
    places = np.concatenate([[first], np.sort(rng.integers(first, length + 1, size=KV_PAIRS))])
    tokens = _window(pieces, stream, length, lines, places, rng, answer)
    source = _ends(lines, places)[1 + asked] - 1 - len(pieces.end)
    start = context - 1
    return Example("question-first", context, tokens, start, 1, int(start - source), start)


def two_questions_example(pieces: Pieces, stream: np.ndarray, context: int, rng: np.random.Generator) -> Example:
    """Return one example of `two_questions`; the arguments and errors are those of `midtext_examples`."""
    example = kv_example(pieces, stream, context, rng, questions=2)
    second = 1 + len(pieces.kv) + 2  # the first question's answer, then the second question with its own
    return dataclasses.replace(example, task="two-questions", prefilled=context - second)


def _text_length(context: int, lines: list[np.ndarray], task: str) -> int:
    """Return the tokens of text beside BOS and the lines; raise CorpusError if there is less than one per line."""
    length = context - 1 - sum(map(len, lines))
    if length < len(lines):
        raise CorpusError(f"{task} needs a context of {context - length + len(lines)} tokens, not {context}")
    return length


def _window(
    pieces: Pieces,
    stream: np.ndarray,
    length: int,
    lines: list[np.ndarray],
    places: np.ndarray,
    rng: np.random.Generator,
    end: np.ndarray | None = None,
) -> np.ndarray:
    """Return BOS, `length` tokens of text with the lines before the tokens at their places, and `end`; int32."""
    text = insert_facts(random_text(stream, length, rng), lines, places)
    return np.concatenate([[pieces.bos], text, *([] if end is None else [end])]).astype(np.int32)


def _ends(lines: list[np.ndarray], places: np.ndarray) -> np.ndarray:
    """Return the place after the last token of every line in the result of `_window`, int64 [lines]."""
    return 1 + places + np.cumsum([len(line) for line in lines])
