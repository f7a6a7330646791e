"""RULER's two tasks of questions (qa_1: SQuAD, qa_2: HotpotQA), from question sets that a user has."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

from seerbench.data.question_sets import Question
from seerbench.data.ruler.draws import Draw, Haystack, Setting

_INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
)
TURN = (
    f"{_INSTRUCTION}\n\nThe following are given documents.\n\n{{context}}"
    f"\n\n{_INSTRUCTION}\n\nQuestion: {{question}}"
)
PREFIX = " Answer:"
STEP = 10


def documents_of(questions: Sequence[Question]) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Return (question, answers, its documents) of each question; blank lines divide its context into documents."""
    return [
        (each.question, each.answers, tuple(part for part in each.context.split("\n\n") if part.strip()))
        for each in questions
    ]


def haystack(setting: Setting) -> Haystack:
    """Return how a task of questions draws at one length. Sizes are documents.

    A question's own documents come first, those that have the answer before the others, then those of other
    questions.
    """
    every = sorted({document for _, _, own in setting.documents for document in own})
    return Haystack(functools.partial(_draw, setting, every), 1, STEP, len(every))


def _draw(setting: Setting, every: Sequence[str], size: int, rng: random.Random, number: int) -> Draw:
    question, answers, own = setting.documents[number % len(setting.documents)]
    chosen = list(dict.fromkeys(own))[:size]
    if size > len(chosen):
        mine = set(chosen)
        chosen += rng.sample([document for document in every if document not in mine], size - len(chosen))
    ordered = setting.shuffled(chosen)
    context = "\n\n".join(f"Document {place}:\n{document}" for place, document in enumerate(ordered, start=1))
    return Draw(TURN.format(context=context, question=question), PREFIX, answers)
