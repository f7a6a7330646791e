"""Read the questions of LongBench-E, make prompts of them, and score answers (Table 2).

    read_examples   a folder of the data set -> the questions of its 13 tasks
    prompt_ids      a question -> the input of a model
    score           a question and an answer -> 0 to 1

measure/tasks.py lets a model answer between the last two. longbench.json holds what the authors of the data set
decided: prompts, lengths of answers, and metrics. Its `version` goes into every row, since scores of two versions
do not compare. Source: THUDM/LongBench (arXiv:2308.14508); the code is our own.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import re
import string
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seerbench.errors import CorpusError
from seerbench.reading import first_line, read_utf8, reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_DEFINITION = json.loads(Path(__file__).with_name("longbench.json").read_text(encoding="utf-8"))
VERSION: str = _DEFINITION["version"]
CORPUS = "LongBench-E"  # name of the data set in rows and tables
ARCHIVE = "data.zip"  # file of the data set, which contains data/<task>_e.jsonl
CURE = "fetch LongBench's data set again"
FIELDS = ("input", "context", "answers", "length", "all_classes")
# Length buckets with their upper ends, in words (`length` in the data set), as in the official scorer.
BUCKETS = (("0-4k", 4000), ("4-8k", 8000), ("8k+", None))
# Positions of the model that are reserved for the answer, as in the evaluation of SeerAttention's authors.
ANSWER_ROOM = 500
# Python's default recursion limit, under which the official scorer runs the package `rouge`.
RECURSION_LIMIT = 1000


@dataclass(frozen=True)
class Task:
    """One task, as the authors of the data set define it."""

    name: str
    prompt: str  # a format string with the fields of a question
    new_tokens: int  # the largest number of tokens in an answer
    metric: str  # a name in METRICS
    chat: bool  # whether the prompt is put into the model's chat template
    first_line: bool  # whether only the first line of an answer is scored


TASKS: dict[str, Task] = {name: Task(name, **fields) for name, fields in _DEFINITION["tasks"].items()}


@dataclass(frozen=True)
class Question:
    """One example of one task."""

    task: str
    number: int  # its line in the task's file
    fields: Mapping[str, str]  # input and context, which fill the prompt
    answers: Sequence[str]  # the reference answers
    classes: Sequence[str]  # the possible answers of a classification
    words: int  # `length` in the data set, which decides the bucket

    @property
    def bucket(self) -> str:
        """Return the length bucket: 0-4k, 4-8k or 8k+."""
        return next(name for name, end in BUCKETS if end is None or self.words < end)


def read_examples(folder: Path, tasks: Sequence[str], per_bucket: int | None = None) -> list[Question]:
    """Read the questions of some tasks, from `data.zip` or from `<task>_e.jsonl` files below `folder`.

    Args:
        folder: a local copy of the data set (`texts.dataset_folder`).
        tasks: names in TASKS.
        per_bucket: take this many questions from the start of each task and bucket; None takes all.

    Raises:
        CorpusError: a task that LongBench-E does not have, or a file or line that is missing, damaged or another's.
    """
    questions = []
    for name in tasks:
        if name not in TASKS:
            raise CorpusError(f"no LongBench-E task {name!r}; its tasks are {', '.join(TASKS)}")
        taken: Counter[str] = Counter()
        for number, line in enumerate(_lines(folder, name)):
            question = _question(name, number, line, f"{name}_e.jsonl in {folder}, line {number + 1}")
            taken[question.bucket] += 1
            if per_bucket is None or taken[question.bucket] <= per_bucket:
                questions.append(question)
    return questions


def _question(task: str, number: int, line: str, where: str) -> Question:
    """Return the question in a line of a task's file; raise CorpusError, which names `where`, if it holds none."""
    try:
        row = json.loads(line)
    except ValueError as fault:
        raise CorpusError(f"{where}: not JSON ({first_line(fault)}); {CURE}") from None
    missing = [field for field in FIELDS if not isinstance(row, dict) or field not in row]
    if missing:
        raise CorpusError(f"{where}: no field {', '.join(missing)}; {CURE}")
    fields = {"input": row["input"], "context": row["context"]}
    texts = [*fields.values(), *_listed(row["answers"]), *_listed(row["all_classes"] or [])]
    if not all(isinstance(text, str) for text in texts) or not str(row["length"]).isdecimal():
        raise CorpusError(f"{where}: a field holds a value of another type than in LongBench; {CURE}")
    return Question(task, number, fields, row["answers"], row["all_classes"] or (), int(row["length"]))


def _listed(value: Any) -> list[Any]:
    """Return a list itself, and any other value as one entry that is no text."""
    return value if isinstance(value, list) else [None]


def _lines(folder: Path, task: str) -> list[str]:
    """Return the JSON lines of one task's file. splitlines() would also split at line ends within texts."""
    name = f"{task}_e.jsonl"
    archive = folder / ARCHIVE
    if archive.is_file():
        with reading(archive, CorpusError, CURE), zipfile.ZipFile(archive) as file:
            entries = [entry for entry in file.namelist() if entry.rsplit("/", 1)[-1] == name]
            if entries:
                return file.read(entries[0]).decode().rstrip("\n").split("\n")
    for path in (folder / name, folder / "data" / name):
        if path.is_file():
            return read_utf8(path, CorpusError, CURE).rstrip("\n").split("\n")
    raise CorpusError(
        f"{folder} has neither {ARCHIVE} with {name} in it, nor {name}; expected a copy of LongBench's data set"
    )


def digest(questions: Sequence[Question]) -> str:
    """Return the sha256 over the questions, for the provenance of rows."""
    sha256 = hashlib.sha256()
    for question in questions:
        content = [question.task, question.number, question.fields, question.answers, question.words]
        sha256.update(json.dumps(content).encode())
    return sha256.hexdigest()


def prompt_ids(question: Question, tokenizer: PreTrainedTokenizerFast, room: int) -> tuple[np.ndarray, bool]:
    """Return the model's input for one question.

    A prompt that is too long keeps its first and last tokens, half of the room each. It is cut before the chat
    template is applied, and a tokenizer that adds BOS adds it to that of the template, both as in the evaluation of
    SeerAttention's authors.

    Args:
        question: from `read_examples`.
        tokenizer: the model's.
        room: the largest number of tokens of a prompt, without the chat template.

    Returns:
        int32 [tokens], and whether the prompt was cut.
    """
    task = TASKS[question.task]
    text = task.prompt.format(**question.fields)
    ids = tokenizer(text, truncation=False).input_ids
    cut = len(ids) > room
    if cut:
        half = room // 2
        text = "".join(tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:half], ids[-half:]))
    if task.chat and tokenizer.chat_template is not None:
        turn = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return np.asarray(tokenizer(text, truncation=False).input_ids, dtype=np.int32), cut


def score(question: Question, prediction: str) -> float:
    """Return the score of an answer, 0 to 1: the best over the reference answers."""
    task = TASKS[question.task]
    if task.first_line:
        prediction = prediction.lstrip("\n").split("\n")[0]
    metric = METRICS[task.metric]
    return max((metric(prediction, answer, question.classes) for answer in question.answers), default=0.0)


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation and articles."""
    without_punctuation = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", without_punctuation).split()


def f1(prediction: str, answer: str, _classes: Sequence[str] = ()) -> float:
    """Return the harmonic mean of precision and recall of the answer's words, in any order."""
    predicted, expected = words_of(prediction), words_of(answer)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected)) if common else 0.0


def rouge(prediction: str, answer: str, _classes: Sequence[str] = ()) -> float:
    """Return the F measure of ROUGE-L by the package `rouge`, which the official scorer uses; others differ.

    A text that the package cannot score, since it is empty or has a sentence too long for its recursion, scores 0,
    as in the official scorer. Other packages raise the recursion limit, so this function sets Python's default.
    """
    from rouge import Rouge

    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + RECURSION_LIMIT)
    try:
        scores = Rouge(metrics=["rouge-l"], stats=["f"]).get_scores([prediction], [answer])
    except (ValueError, RecursionError):
        return 0.0
    finally:
        sys.setrecursionlimit(before)
    return scores[0]["rouge-l"]["f"]


def classification(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """Return 1 / n if the prediction names n classes and the right one is among them, else 0."""
    named = [name for name in classes if name in prediction]
    # A name that is part of the right name does not count as another answer. The official scorer removes names from
    # the list over which it iterates, so it skips the name after a removed one. This loop skips it too, to give the
    # same scores.
    place = 0
    while place < len(named):
        if named[place] in answer and named[place] != answer:
            del named[place]
        place += 1
    return 1 / len(named) if answer in named else 0.0


def count(prediction: str, answer: str, _classes: Sequence[str] = ()) -> float:
    """Return the share of the numbers in the prediction that equal the answer, from 0 to 1."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(str(answer)) / len(numbers) if numbers else 0.0


def retrieval(prediction: str, answer: str, _classes: Sequence[str] = ()) -> float:
    """Return the share of the numbers in the prediction that equal the number of an answer "Paragraph 12"."""
    return count(prediction, re.findall(r"Paragraph (\d+)", answer)[0])


def code(prediction: str, answer: str, _classes: Sequence[str] = ()) -> float:
    """Return the similarity of a line of code to the answer, in whole percent.

    The line is the first one of the prediction that is neither a comment nor a fence. The similarity is that of
    fuzzywuzzy's `ratio` without the optional python-Levenshtein, as the official requirements install it: Python's
    difflib, rounded.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    if line == answer:
        return 1.0
    if not line or not answer:
        return 0.0
    return round(100 * difflib.SequenceMatcher(None, line, answer).ratio()) / 100


METRICS: dict[str, Callable[[str, str, Sequence[str]], float]] = {
    "f1": f1,
    "rouge": rouge,
    "classification": classification,
    "count": count,
    "retrieval": retrieval,
    "code": code,
}


def stops(task: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return the options of `generate` that end an answer: for samsum, at the first line break after one token."""
    if task != "samsum":
        return {}
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    return {"min_new_tokens": 1, "eos_token_id": [tokenizer.eos_token_id, newline]}
