"""Name the look-up tasks that presets may ask for."""

from __future__ import annotations

from collections.abc import Callable

from seerbench.data import far_lookups, lookups, passages
from seerbench.data.lookup_parts import Example

TASKS: dict[str, Callable[..., list[Example]]] = {
    "passkey": lookups.passkey,
    "kv": lookups.kv,
    "kv-shared": lookups.kv_shared,
    "cloze": lookups.cloze,
    "midtext": far_lookups.midtext,
    "tracking": far_lookups.tracking,
    "question-first": far_lookups.question_first,
    "two-questions": far_lookups.two_questions,
    "passage": passages.passage,
}
# Tasks whose answers are decoded after the prompt; those of all others are scored in it.
ANSWERED_AFTER_PROMPT = ("two-questions", "passage")
# The tasks whose question is in the prompt, where a method can see it.
ASKED_IN_PROMPT = tuple(task for task in TASKS if task != "two-questions")
