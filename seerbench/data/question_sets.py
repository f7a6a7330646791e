"""Read a set of questions about long documents, which a user brings as a parquet file, and make prompts of them.

Columns: id, context, question (texts), answers (a list of texts, or one text), metric (one of QUESTION_METRICS).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seerbench.data import longbench
from seerbench.data.prompts import METRICS, Prompt, encoded, in_turn
from seerbench.errors import CorpusError
from seerbench.rows import parquet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

COLUMNS = ("id", "context", "question", "answers", "metric")
QUESTION_METRICS = tuple(METRICS)
CURE = "make it again with the columns id, context, question, answers and metric"
PROMPT = "{context}\n\n{question}"


@dataclass(frozen=True)
class Question:
    """One row of a question set."""

    id: str
    context: str
    question: str
    answers: tuple[str, ...]
    metric: str


def read_questions(file: Path) -> list[Question]:
    """Read a question set.

    Raises:
        CorpusError: the file is missing, damaged or empty, lacks a column, or a row has an empty or unknown value.
    """
    columns = parquet.column_names(file, CorpusError, CURE)
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise CorpusError(f"{file}: no column {', '.join(missing)}; {CURE}")
    rows = parquet.read(file, CorpusError, CURE, columns=list(COLUMNS)).to_pylist()
    if not rows:
        raise CorpusError(f"{file} has no rows; {CURE}")
    return [_question(row, f"{file}, row {number}") for number, row in enumerate(rows, start=1)]


def _question(row: dict[str, Any], where: str) -> Question:
    answers = [row["answers"]] if isinstance(row["answers"], str) else row["answers"] or []
    texts = [*(row[name] for name in COLUMNS if name != "answers"), *answers]
    if not answers or not all(isinstance(text, str) and text for text in texts):
        raise CorpusError(f"{where}: a value is empty or no text; {CURE}")
    if row["metric"] not in QUESTION_METRICS:
        raise CorpusError(f"{where}: no metric {row['metric']!r}; known: {', '.join(QUESTION_METRICS)}")
    if row["metric"] == "retrieval" and not all(re.search(r"Paragraph \d+", answer) for answer in answers):
        raise CorpusError(f"{where}: the metric retrieval needs answers such as 'Paragraph 12'")
    return Question(row["id"], row["context"], row["question"], tuple(answers), row["metric"])


def digest(questions: Sequence[Question]) -> str:
    """Return the sha256 over the questions, for the provenance of rows."""
    content = [[each.id, each.context, each.question, each.answers, each.metric] for each in questions]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def prompts_of(
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerFast,
    task: str,
    positions: int,
    new_tokens: int,
) -> Iterator[Prompt]:
    """Yield a prompt for each question: its context, a blank line and the question, in the chat template if any.

    A context that is too long for the model loses its middle. The classes of a classification are all answers of
    the questions with that metric.

    Args:
        questions: from `read_questions`.
        tokenizer: the model's own.
        task: name of the task in rows.
        positions: of the model; prompt and answer have at most as many tokens.
        new_tokens: the largest number of tokens in an answer.

    Raises:
        CorpusError: a question alone is too long.
    """
    named = {answer for each in questions if each.metric == "classification" for answer in each.answers}
    for number, each in enumerate(questions):
        context, cut = each.context, False
        while True:
            ids = encoded(in_turn(PROMPT.format(context=context, question=each.question), tokenizer), tokenizer)
            over = len(ids) + new_tokens - positions
            if over <= 0:
                break
            if not context:
                raise CorpusError(
                    f"question {each.id} with its answer needs more than {positions} tokens; leave it out"
                )
            context, cut = _without_middle(context, over, tokenizer), True
        yield Prompt(
            task=task,
            number=number,
            context=len(ids),
            bucket=bucket_of(len(ids)),
            ids=ids,
            new_tokens=new_tokens,
            references=each.answers,
            metric=each.metric,
            classes=tuple(sorted(named)),
            definition=longbench.VERSION,
            cut=cut,
        )


def _without_middle(text: str, tokens: int, tokenizer: PreTrainedTokenizerFast) -> str:
    """Return a text without at least that many tokens in its middle."""
    ids = tokenizer(text, truncation=False, add_special_tokens=False).input_ids
    kept = max(0, len(ids) - tokens - 1)  # one more, since the two parts may meet in other tokens
    half = kept // 2
    parts = ids[:half], ids[len(ids) - (kept - half) :]
    return "".join(str(tokenizer.decode(part, skip_special_tokens=True)) for part in parts)


def bucket_of(tokens: int) -> str:
    """Return the length bucket of a prompt: from a power of two, exclusive, to the next one: `1024-2048`."""
    end = 1 << (tokens - 1).bit_length()
    return f"{end // 2}-{end}"
