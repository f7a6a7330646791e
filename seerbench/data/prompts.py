"""Define a prompt whose answer is generated, and mark answers: what RULER and question sets have in common.

ruler/ and question_sets.py make prompts; measure/generation.py lets a model answer them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from seerbench.data import longbench
from seerbench.data.ruler.scoring import match_all, match_part

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# name -> (prediction, references, classes) -> 0 to 1.
Metric = Callable[[str, Sequence[str], Sequence[str]], float]


def _best(metric: Callable[[str, str, Sequence[str]], float]) -> Metric:
    """Return a metric of LongBench's as one of several references: the best of them counts."""

    def marked(prediction: str, references: Sequence[str], classes: Sequence[str]) -> float:
        return max((metric(prediction, reference, classes) for reference in references), default=0.0)

    return marked


METRICS: dict[str, Metric] = {
    "match_all": lambda prediction, references, classes: match_all(prediction, references),
    "match_part": lambda prediction, references, classes: match_part(prediction, references),
    **{name: _best(metric) for name, metric in longbench.METRICS.items()},
}


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what its answer is compared with.

    Attributes:
        task: name of the task in rows.
        number: of the example within its task and length, from 0.
        context: RULER: the length that the task is made for. Question sets: tokens of the prompt.
        bucket: the length in words, for rows.
        ids: int32 [tokens], the input of the model.
        new_tokens: the largest number of tokens in an answer.
        references: the right answers.
        metric: a key of METRICS.
        classes: the possible answers of a classification.
        depth: RULER's tasks with one asked needle: its place in the haystack, 0 at the start and 1 at the end.
        distance: of the same tasks: tokens from the needle's first one to the end of the prompt.
        definition: the edition of the prompts and metrics, if they have one.
        cut: whether the middle of the prompt was removed to fit the model.
    """

    task: str
    number: int
    context: int
    bucket: str
    ids: np.ndarray
    new_tokens: int
    references: tuple[str, ...]
    metric: str
    classes: tuple[str, ...] = ()
    depth: float | None = None
    distance: int | None = None
    definition: str | None = None
    cut: bool = False

    def score(self, prediction: str) -> float:
        """Return the mark of an answer, 0 to 1."""
        return METRICS[self.metric](prediction, self.references, self.classes)


def in_turn(text: str, tokenizer: PreTrainedTokenizerFast) -> str:
    """Return a text as the user's turn in the tokenizer's chat template; the text itself where it has none."""
    if tokenizer.chat_template is None:
        return text
    turn = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))


def encoded(text: str, tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Return the tokens of a text from `in_turn`, int32 [tokens]. A chat template brings its own BOS."""
    special = tokenizer.chat_template is None
    # verbose=False: a prompt that is too long for the model is expected while its size is sought.
    found = tokenizer(text, truncation=False, add_special_tokens=special, verbose=False)
    return np.asarray(found.input_ids, dtype=np.int32)
