"""Steps that let models answer prompts: RULER's tasks, and question sets.

The rows of each model, task and length are saved once they are complete (saved_rows.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seerbench.data import question_sets
from seerbench.data.prompts import Prompt
from seerbench.data.ruler.tasks import DEFINITION, essay_words, make_prompts
from seerbench.data.tokens import load_tokenizer, read_card, read_tokens
from seerbench.errors import ModelError
from seerbench.measure.generation import answer_prompts
from seerbench.presets.jobs import QuestionSetJob, RulerJob
from seerbench.rows.source_digest import source_digest
from seerbench.steps.arms import make_arms
from seerbench.steps.common import load_model, start, tokenizer_of
from seerbench.steps.saved_rows import SavedRows

# (tokenizer of a model, its positions) -> prompts.
MakesPrompts = Callable[[Any, int], list[Prompt]]


def measure_ruler(job: RulerJob) -> None:
    """Let every arm answer RULER's tasks at every length; tasks without their question set are left out."""
    run = start(job.setup, f"tasks {job.experiment}", job.tokens, "test", job.models)
    makers = {f"{task}-{context}": make for (task, context), make in ruler_prompts(job).items()}
    saved = SavedRows("tasks", job.rows, run, ruler_state(job), [*job.arm_files, *question_files(job)])
    _answer(job, makers, saved, job.tokens.corpus)


def ruler_state(job: RulerJob) -> list[object]:
    """Return what decides the rows of a job beside its files: settings and digests."""
    return [job, read_card(job.tokens.file).sha256, DEFINITION, source_digest()]


def question_files(job: RulerJob) -> list[Path]:
    """Return the files of question sets that are there."""
    return [file for file in job.question_sets.values() if file.exists()]


def ruler_prompts(job: RulerJob) -> dict[tuple[str, int], MakesPrompts]:
    """Return what makes the prompts of each task and length.

    Tasks without their question set are left out, with a line on stderr.
    """
    tasks = list(job.tasks)
    for task, file in job.question_sets.items():
        if not file.exists():
            tqdm.write(f"{task} is left out: {file} does not exist", file=sys.stderr)
            tasks.remove(task)
    documents = read_tokens(job.tokens.file, "test")
    tokenizer = load_tokenizer(job.tokenizer.location, job.tokenizer.revision)
    essay = essay_words(documents, tokenizer, max(job.contexts))

    def maker(task: str, context: int) -> MakesPrompts:
        def make(tokenizer: Any, positions: int) -> list[Prompt]:
            if context > positions:
                raise ModelError(
                    f"a length of {context} tokens, and the model has {positions} positions; leave the length out, "
                    "or extend the model with yarn"
                )
            return make_prompts(
                task,
                tokenizer,
                context,
                job.examples,
                job.setup.seed,
                corpus=job.tokens.corpus,
                essay=essay,
                question_set=job.question_sets.get(task),
            )

        return make

    return {(task, context): maker(task, context) for task in tasks for context in job.contexts}


def measure_question_set(job: QuestionSetJob) -> None:
    """Let every arm answer the questions of a file."""
    run = start(job.setup, f"tasks {job.experiment}", models=job.models)
    questions = question_sets.read_questions(job.questions)
    name, sha256 = job.questions.stem, question_sets.digest(questions)
    run |= {"corpus": name, "corpus_sha256": sha256, "corpus_split": "test", "corpus_source": job.questions.name}

    def make(tokenizer: Any, positions: int) -> list[Prompt]:
        return list(question_sets.prompts_of(questions, tokenizer, name, positions, job.new_tokens))

    state = [job, sha256, source_digest()]
    _answer(job, {name: make}, SavedRows("tasks", job.rows, run, state, job.arm_files), name)


def _answer(job: RulerJob | QuestionSetJob, makers: dict[str, MakesPrompts], saved: SavedRows, corpus: str) -> None:
    """Let every arm answer what each maker makes, for every model, and write the rows.

    A piece that an execution before this one has saved is not measured again.
    """
    with tqdm(total=0, desc=f"tasks {job.experiment}", unit="answer", mininterval=1) as bar:
        for group in job.groups:
            missing = [name for name in makers if not saved.has(f"{group.model.name}-{name}")]
            if not missing:
                continue
            model, tokenizer = load_model(group.model, job.setup), tokenizer_of(group.model)
            arms = make_arms(group.arms, job.setup.device)
            for name in missing:
                prompts = makers[name](tokenizer, model.config.max_position_embeddings)
                bar.total = (bar.total or 0) + len(prompts) * len(arms)
                found = answer_prompts(model, tokenizer, prompts, arms, job.batch, bar)
                saved.save(f"{group.model.name}-{name}", _labelled(job, group.model.name, corpus, found))
    saved.join()


def _labelled(
    job: RulerJob | QuestionSetJob, model: str, corpus: str, rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    fixed = {"experiment": job.experiment, "model": model, "corpus": corpus}
    return [fixed | row for row in rows]
