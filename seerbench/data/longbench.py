"""LongBench-E: 13 tasks on long texts with their prompts, scorers and length buckets (Table 2).

`read_examples` reads the questions, `prompt_ids` turns one into a model's input, `measure/tasks.py` lets a model
answer, and `score` marks the answer. What the data set's authors decided (prompts, lengths of answers, metrics) is
in longbench.json. `VERSION` names that edition and goes into every row, since scores of two editions cannot be
compared. The code is our own.
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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


_DEFINITION = json.loads(Path(__file__).with_name("longbench.json").read_text())
VERSION: str = _DEFINITION["version"]
CORPUS = "LongBench-E"  # what rows and tables call it
ARCHIVE = "data.zip"  # what the data set holds: data/<task>_e.jsonl in one archive
FIELDS = ("input", "context", "answers", "length", "all_classes")
# Upper ends in words (the data set's `length`), as its scorer has them.
BUCKETS = (("0-4k", 4000), ("4-8k", 8000), ("8k+", None))
# Left of the model's positions for the answer, as the SeerAttention authors' evaluation has it.
ANSWER_ROOM = 500
FRAMES = 1000  # Python's limit of recursion, under which the official scorer runs the package `rouge`


@dataclass(frozen=True)
class Task:
    """What the data set's authors decided about one task."""

    name: str
    prompt: str
    new_tokens: int  # the longest answer
    metric: str  # a name in METRICS
    chat: bool  # whether the prompt is put into the model's chat template
    first_line: bool  # whether only the first line of an answer counts


TASKS: dict[str, Task] = {name: Task(name, **about) for name, about in _DEFINITION["tasks"].items()}


@dataclass(frozen=True)
class Question:
    """One example of one task."""

    task: str
    number: int  # its line in the task's file
    fields: Mapping[str, str]  # input and context, what the prompt is filled with
    answers: Sequence[str]
    classes: Sequence[str]
    words: int  # the data set's `length`, which decides the bucket

    @property
    def bucket(self) -> str:
        """The length bucket: 0-4k, 4-8k or 8k+."""
        return next(name for name, end in BUCKETS if end is None or self.words < end)


def read_examples(folder: Path, tasks: Sequence[str], a_bucket: int | None = None) -> list[Question]:
    """Read the questions of some tasks, from `data.zip` or from `<task>_e.jsonl` files below `folder`.

    Args:
        folder: a local copy of the data set (`corpus.dataset_folder`).
        tasks: names in TASKS.
        a_bucket: the first so many of each task and bucket; None takes all.

    Raises:
        CorpusError: a task that is not LongBench-E's, a missing file or field.
    """
    found = []
    for name in tasks:
        if name not in TASKS:
            raise CorpusError(f"no LongBench-E task {name!r}; its tasks are {', '.join(TASKS)}")
        taken: Counter[str] = Counter()
        for number, line in enumerate(_lines(folder, name)):
            row = json.loads(line)
            missing = [field for field in FIELDS if field not in row]
            if missing:
                raise CorpusError(f"{name}_e.jsonl in {folder}, line {number + 1}: no field {', '.join(missing)}")
            fields = {"input": row["input"], "context": row["context"]}
            classes = row["all_classes"] or ()
            question = Question(name, number, fields, row["answers"], classes, int(row["length"]))
            taken[question.bucket] += 1
            if a_bucket is None or taken[question.bucket] <= a_bucket:
                found.append(question)
    return found


def _lines(folder: Path, task: str) -> list[str]:
    """Return the JSON lines of one task's file, split at \\n alone: texts hold other line ends."""
    name = f"{task}_e.jsonl"
    archive = folder / ARCHIVE
    if archive.is_file():
        with zipfile.ZipFile(archive) as whole:
            inside = [entry for entry in whole.namelist() if entry.rsplit("/", 1)[-1] == name]
            if inside:
                return whole.read(inside[0]).decode().rstrip("\n").split("\n")
    for path in (folder / name, folder / "data" / name):
        if path.is_file():
            return path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    raise CorpusError(
        f"{folder} has neither {ARCHIVE} with {name} in it, nor {name}: it is not LongBench's data set"
    )


def digest(questions: Sequence[Question]) -> str:
    """Return the sha256 over the questions, for the provenance of rows."""
    whole = hashlib.sha256()
    for one in questions:
        whole.update(json.dumps([one.task, one.number, one.fields, one.answers, one.words]).encode())
    return whole.hexdigest()


def prompt_ids(question: Question, tokenizer: PreTrainedTokenizerFast, room: int) -> tuple[np.ndarray, bool]:
    """Return the model's input for one question, int32 [tokens], and whether the text had to be cut.

    A prompt of more than `room` tokens keeps its first and last half. The cut comes before the chat template, and
    a tokenizer that adds BOS adds it to the template's own, both as in the authors' evaluation.
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
    """Score an answer from 0 to 1: the best score over the reference answers."""
    task = TASKS[question.task]
    if task.first_line:
        prediction = prediction.lstrip("\n").split("\n")[0]
    metric = METRICS[task.metric]
    return max((metric(prediction, answer, question.classes) for answer in question.answers), default=0.0)


def words_of(text: str) -> list[str]:
    """Return the words of a text: lower case, without punctuation and articles, split at white space."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def f1(prediction: str, answer: str, _classes: Sequence[str] = ()) -> float:
    """Return the harmonic mean of precision and recall of the answer's words (`words_of`), in any order."""
    said, wanted = words_of(prediction), words_of(answer)
    same = sum((Counter(said) & Counter(wanted)).values())
    return 2 * same / (len(said) + len(wanted)) if same else 0.0


def rouge(prediction: str, answer: str, _classes: Sequence[str] = ()) -> float:
    """Return ROUGE-L's F from the package `rouge`, as the data set's scorer does; other packages differ.

    Texts that the package cannot mark (empty, or a sentence too long for its recursion) score 0, as there: under
    Python's own limit of recursion, which other packages raise.
    """
    from rouge import Rouge

    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + FRAMES)
    try:
        marks = Rouge(metrics=["rouge-l"], stats=["f"]).get_scores([prediction], [answer])
    except (ValueError, RecursionError):
        return 0.0
    finally:
        sys.setrecursionlimit(before)
    return marks[0]["rouge-l"]["f"]


def classification(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """Return 1 / (classes named in the prediction) if the right one is among them, else 0."""
    named = [name for name in classes if name in prediction]
    # A name inside the right name is no other answer. The official scorer removes while it iterates, so that
    # the class after a removed one is not looked at; the same here, or scores would differ.
    place = 0
    while place < len(named):
        if named[place] in answer and named[place] != answer:
            del named[place]
        place += 1
    return 1 / len(named) if answer in named else 0.0


def count(prediction: str, answer: str, _classes: Sequence[str] = ()) -> float:
    """Return the share of the numbers in the prediction that are the right one."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(str(answer)) / len(numbers) if numbers else 0.0


def retrieval(prediction: str, answer: str, _classes: Sequence[str] = ()) -> float:
    """Return the share of the numbers in the prediction that are the paragraph of an answer "Paragraph 12"."""
    return count(prediction, re.findall(r"Paragraph (\d+)", answer)[0])


def code(prediction: str, answer: str, _classes: Sequence[str] = ()) -> float:
    """Return the similarity, in whole percent, of the first line of code to the wanted line.

    Comments and fences are no lines of code.

    That is fuzzywuzzy's `ratio` as the data set's requirements install it: Python's difflib, rounded. With the
    optional python-Levenshtein fuzzywuzzy would give another number.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((one for one in lines if not any(mark in one for mark in ("`", "#", "//"))), "")
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
    """Return the stopping options of a task's generation: samsum ends at a line break, after at least one token."""
    if task != "samsum":
        return {}
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    return {"min_new_tokens": 1, "eos_token_id": [tokenizer.eos_token_id, newline]}
