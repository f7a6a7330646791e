"""Make look-ups with long answers: a passage of the text is begun again at the end, and goes on as before.

Every token of the answer is decoded, and each of them is found at another place of the text than the one before it.
Each is predicted after the right ones before it. Where a model generates the answer, its first wrong token derails
the rest, and small models soon have one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from seerbench.data.lookup_parts import EVALUATION, Example, Pieces, pieces_of, random_text
from seerbench.data.lookups import span_hashes
from seerbench.data.windows import packed
from seerbench.errors import CorpusError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CUE, ANSWER = 16, 64  # tokens of a passage that are shown again, and those after them that are asked for
DRAWS = 1000  # texts that are drawn at most for one example; repetitive texts have few cues that occur once


def passage(
    tokens: Mapping[str, np.ndarray],
    tokenizer: PreTrainedTokenizerFast,
    context: int,
    count: int,
    seed: int,
) -> list[Example]:
    """Make examples that end with the first CUE tokens of a passage of their text, whose next ANSWER are asked for.

    `... PASSAGE ... \\n CUE` -> the rest of the passage. The passage is at a uniformly random place, and its cue
    occurs nowhere else in the text. The answer is decoded after the prompt.

    Args:
        tokens: id -> tokens of a held-out split, from `read_tokens`.
        tokenizer: that of the tokens.
        context: tokens of every example, prompt and answer together.
        count: number of examples.
        seed: the same seed gives the same examples.

    Raises:
        CorpusError: the context or the corpus is too short, or the text repeats itself everywhere.
    """
    pieces, stream = pieces_of(tokenizer), packed(tokens, tokenizer.eos_token_id)
    rng = np.random.default_rng([seed, EVALUATION, context, 8])
    return [_passage_example(pieces, stream, context, rng) for _ in range(count)]


def _passage_example(pieces: Pieces, stream: np.ndarray, context: int, rng: np.random.Generator) -> Example:
    length = context - 1 - len(pieces.end) - CUE - ANSWER
    if length < CUE + ANSWER:
        raise CorpusError(f"a passage needs a context of {context - length + CUE + ANSWER} tokens, not {context}")
    for _ in range(DRAWS):
        text = random_text(stream, length, rng)
        place = int(rng.integers(0, length - CUE - ANSWER + 1))
        hashes = span_hashes(text, CUE)
        if (hashes == hashes[place]).sum() == 1:
            break
    else:
        raise CorpusError(
            f"no text of {length} tokens has a passage whose first {CUE} tokens occur once in it; choose a corpus "
            "that repeats itself less"
        )
    again = text[place : place + CUE + ANSWER]
    tokens = np.concatenate([[pieces.bos], text, pieces.end, again]).astype(np.int32)
    start = context - ANSWER
    return Example("passage", context, tokens, start, ANSWER, start - (1 + place + CUE), start, given=True)
