"""Make the prompts of RULER's tasks: each as long as a length in a model's own tokens allows."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seerbench.data.prompts import Prompt, encoded, in_turn
from seerbench.data.question_sets import read_questions
from seerbench.data.ruler import counting, needles, questions, tracking
from seerbench.data.ruler.draws import Draw, Haystack, Setting
from seerbench.data.ruler.sizing import largest_size
from seerbench.errors import CorpusError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEFINITION = "NVIDIA/RULER@c3f5e3b"


@dataclass(frozen=True)
class Task:
    """A task: how it draws, the largest number of tokens in an answer, and its metric.

    Attributes:
        haystack: how it draws at one length.
        new_tokens: tokens to generate.
        metric: a key of prompts.METRICS.
        in_text: whether its haystack is text of a corpus, whose name the task in rows carries.
        asks_documents: whether it needs a question set.
    """

    haystack: Callable[[Setting], Haystack]
    new_tokens: int
    metric: str = "match_all"
    in_text: bool = False
    asks_documents: bool = False


def _needle_task(task: needles.Needles) -> Task:
    return Task(lambda setting: needles.haystack(task, setting), 128, in_text=task.haystack == needles.ESSAY)


TASKS: dict[str, Task] = {
    **{name: _needle_task(task) for name, task in needles.TASKS.items()},
    "vt": Task(tracking.haystack, 30),
    "cwe": Task(counting.common_words, 120),
    "fwe": Task(counting.frequent_words, counting.ANSWER_TOKENS),
    "qa_1": Task(questions.haystack, 32, "match_part", asks_documents=True),
    "qa_2": Task(questions.haystack, 32, "match_part", asks_documents=True),
}


def name_in_rows(task: str, corpus: str) -> str:
    """Return a task's name, with that of a corpus that replaces RULER's own text: `niah_single_2-pg19`."""
    return f"{task}-{corpus}" if TASKS[task].in_text else task


def essay_words(documents: Mapping[str, np.ndarray], tokenizer: PreTrainedTokenizerFast, count: int) -> list[str]:
    """Return the first words of tokenized documents, one document after the other.

    Args:
        documents: id -> int32 tokens, from `tokens.read_tokens`.
        tokenizer: that of the tokens.
        count: number of words; fewer if the documents are shorter.
    """
    words: list[str] = []
    for tokens in documents.values():
        words += str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False)).split()
        if len(words) >= count:
            break
    return words[:count]


def make_prompts(
    task: str,
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    count: int,
    seed: int,
    *,
    corpus: str,
    essay: Sequence[str] = (),
    question_set: Path | None = None,
) -> list[Prompt]:
    """Make the prompts of one task and length.

    The size of the haystack is the largest that fits for one draw. A later draw that is too long gets a smaller
    haystack. An example depends on seed, task, length and its number, and not on how many examples there are.

    Args:
        task: a key of TASKS.
        tokenizer: the model's own; its chat template is used if it has one.
        length: the largest number of tokens of prompt and answer together.
        count: number of examples; of a question set, at most all that it has.
        seed: the same seed gives the same prompts.
        corpus: name of the essay's corpus.
        essay: words of the text that needles are hidden in.
        question_set: file with the questions of qa_1 or qa_2.

    Raises:
        CorpusError: the length is too short for the task, or there is no text or no question set for it.
    """
    made = TASKS[task]
    if made.in_text and not essay:
        raise CorpusError(f"{task} hides needles in text, and the corpus {corpus} has none; choose another corpus")
    if made.asks_documents and question_set is None:
        raise CorpusError(f"{task} needs a question set; leave it out")
    documents = questions.documents_of(read_questions(question_set)) if question_set and made.asks_documents else []
    setting = Setting(length, seed, essay, lambda text: len(encoded(text, tokenizer)), documents)
    haystack = made.haystack(setting)
    room = length - made.new_tokens

    def text_of(draw: Draw) -> str:
        return in_turn(draw.turn, tokenizer) + draw.prefix

    def fits(size: int) -> bool:
        draw = haystack.draw(size, random.Random(f"{seed} {task} {length} size"), 0)
        return len(encoded(text_of(draw), tokenizer)) <= room

    size = largest_size(fits, haystack.smallest, haystack.largest)
    prompts = []
    for number in range(min(count, len(documents)) if made.asks_documents else count):
        rng, own = random.Random(f"{seed} {task} {length} {number}"), size
        while own is not None:
            draw = haystack.draw(own, rng, number)
            text = text_of(draw)
            ids = encoded(text, tokenizer)
            if len(ids) <= room:
                break
            own = max(own - haystack.step, haystack.smallest) if own > haystack.smallest else None
        else:
            raise CorpusError(
                f"{task} does not fit into {length} tokens with this tokenizer; choose longer contexts"
            )
        prompts.append(
            Prompt(
                task=name_in_rows(task, corpus),
                number=number,
                context=length,
                bucket=str(length),
                ids=ids,
                new_tokens=made.new_tokens,
                references=draw.references,
                metric=made.metric,
                depth=draw.depth,
                distance=_distance(text, draw.needle, tokenizer),
                definition=DEFINITION,
            )
        )
    return prompts


def _distance(text: str, needle: str | None, tokenizer: PreTrainedTokenizerFast) -> int | None:
    """Return the tokens from a needle's first one to the end of the prompt; None without a needle."""
    if needle is None:
        return None
    return len(tokenizer(text[text.index(needle) :], truncation=False, add_special_tokens=False).input_ids)
