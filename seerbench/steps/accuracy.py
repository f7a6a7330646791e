"""Steps that measure accuracy: perplexity, look-ups, LongBench-E, block recall, attention maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from tqdm import tqdm

from seerbench.data import longbench
from seerbench.data.lookup_parts import Example
from seerbench.data.lookup_tasks import TASKS
from seerbench.data.texts import data_set_origin, dataset_folder
from seerbench.data.tokens import load_tokenizer, read_tokens
from seerbench.measure import maps, perplexity, recall, tasks
from seerbench.methods.gate_files import load_gates
from seerbench.presets.jobs import LongBenchJob, QuestionSetJob, RecallJob, RetrievalJob, RulerJob
from seerbench.presets.preset import Preset
from seerbench.steps.arms import make_arms
from seerbench.steps.common import load_model, require, save, start, tokenizer_of, windows_of
from seerbench.steps.prompts import measure_question_set, measure_ruler


def measure_perplexity(preset: Preset, experiment: str) -> None:
    """Measure one perplexity experiment: every context, arm and document."""
    job = preset.perplexity(experiment)
    require(preset, [job.tokens.file, *job.arm_files], [job.rows])
    run = start(job.setup, f"perplexity {experiment}", job.tokens, "test", job.models)
    rows: list[dict[str, Any]] = []
    with tqdm(total=0, desc=f"perplexity {experiment}", unit="doc", mininterval=1) as bar:
        for group in job.groups:
            model = load_model(group.model, job.setup, job.tokens)
            arms = make_arms(group.arms, job.setup.device)
            for context in job.contexts:
                windows = windows_of(
                    job.tokens,
                    context,
                    job.documents,
                    model,
                    longest=max(job.contexts),
                    aligned=job.scored is not None or job.decoded is not None,
                    reaching=job.reaching,
                )
                bar.total = (bar.total or 0) + len(windows) * len(arms)
                fixed = {"experiment": experiment, "model": group.model.name, "corpus": job.tokens.corpus}
                if job.decoded is None:
                    found = perplexity.perplexity(model, windows, arms, bar, job.scored)
                else:
                    found = perplexity.decoded_perplexity(model, windows, arms, job.decoded, job.batch, bar)
                rows += [fixed | row for row in found]
    save("perplexity", job.rows, rows, run)


def measure_tasks(preset: Preset, experiment: str) -> None:
    """Measure one experiment of tasks: look-ups, LongBench-E, RULER, or a question set."""
    job = preset.tasks(experiment)
    require(preset, [*job.token_files, *job.tokenizer_files, *job.arm_files], [job.rows])
    if isinstance(job, LongBenchJob):
        _measure_longbench(job)
    elif isinstance(job, RulerJob):
        measure_ruler(job)
    elif isinstance(job, QuestionSetJob):
        measure_question_set(job)
    else:
        _measure_retrieval(job)


def _measure_longbench(job: LongBenchJob) -> None:
    """Let every arm answer every question of LongBench-E, and score the answers."""
    run = start(job.setup, f"tasks {job.experiment}", models=job.models)
    files = [longbench.ARCHIVE, "*_e.jsonl", "data/*_e.jsonl"]
    folder = dataset_folder(str(job.source), files, job.revision)
    questions = longbench.read_examples(folder, job.tasks or list(longbench.TASKS), job.examples)
    run |= {"corpus": longbench.CORPUS, "corpus_sha256": longbench.digest(questions), "corpus_split": "test"}
    run["corpus_source"] = data_set_origin(str(job.source), job.revision)
    rows: list[dict[str, Any]] = []
    with tqdm(total=0, desc=f"tasks {job.experiment}", unit="answer", mininterval=1) as bar:
        for group in job.groups:
            model = load_model(group.model, job.setup)
            arms = make_arms(group.arms, job.setup.device)
            bar.total = (bar.total or 0) + len(questions) * len(arms)
            fixed = {"experiment": job.experiment, "model": group.model.name, "corpus": longbench.CORPUS}
            found = tasks.answers(model, tokenizer_of(group.model), questions, arms, bar)
            rows += [fixed | row for row in found]
    save("tasks", job.rows, rows, run)


def _measure_retrieval(job: RetrievalJob) -> None:
    """Let every arm answer the look-ups of every task and length."""
    run = start(job.setup, f"tasks {job.experiment}", job.tokens, "test", job.models)
    rows: list[dict[str, Any]] = []
    tokenizer = load_tokenizer(job.tokenizer.location, job.tokenizer.revision)
    examples = lookups(job, tokenizer)
    total = sum(map(len, examples.values())) * sum(len(group.arms) for group in job.groups)
    with tqdm(total=total, desc=f"tasks {job.experiment}", unit="example", mininterval=1) as bar:
        for group in job.groups:
            model = load_model(group.model, job.setup, job.tokens)
            arms = make_arms(group.arms, job.setup.device)
            for (_, context), asked in examples.items():
                fixed = {
                    "experiment": job.experiment,
                    "model": group.model.name,
                    "corpus": job.tokens.corpus,
                    "bucket": tasks.bucket_of(list(job.contexts), context),
                }
                found = tasks.retrieval(model, tokenizer, asked, arms, job.batch, bar)
                rows += [fixed | row for row in found]
    save("tasks", job.rows, rows, run)


def lookups(job: RetrievalJob, tokenizer: Any) -> dict[tuple[str, int], list[Example]]:
    """Return the look-ups of a job by task and context; `tokenizer` made the tokens of its text."""
    documents = read_tokens(job.tokens.file, "test")
    return {
        (task, context): TASKS[task](documents, tokenizer, context, job.examples, job.setup.seed)
        for task in job.tasks
        for context in job.contexts
    }


def measure_recall(preset: Preset, experiment: str) -> None:
    """Measure the block recall of every arm against the oracle's blocks."""
    job = preset.recall(experiment)
    require(preset, [job.tokens.file, *job.tokenizer_files, *job.arm_files], [job.rows])
    run = start(job.setup, f"recall {experiment}", job.tokens, "test", job.models)
    rows: list[dict[str, Any]] = []
    for group in job.groups:
        model = load_model(group.model, job.setup, job.tokens)
        arms = make_arms(group.arms, job.setup.device)
        for context in job.contexts:
            fixed = {"experiment": experiment, "model": group.model.name, "corpus": job.tokens.corpus}
            if job.task is None:
                windows = windows_of(job.tokens, context, job.documents, model, longest=max(job.contexts))
                found = recall.recall(model, windows, arms, job.setup.block)
            else:
                windows, asked = _lookup_windows(job, job.task, context)
                found = recall.recall(model, windows, arms, job.setup.block, asked)
            rows += [fixed | {"task": job.task} | row for row in found]
    save("recall", job.rows, rows, run)


def _lookup_windows(
    job: RecallJob, task: str, context: int
) -> tuple[dict[str, np.ndarray], dict[str, tuple[int, int]]]:
    """Return prompts of look-ups by name, and the tokens that ask and that have the answer in each."""
    documents = read_tokens(job.tokens.file, "test")
    tokenizer = load_tokenizer(job.tokenizer.location, job.tokenizer.revision)
    examples = TASKS[task](documents, tokenizer, context, job.documents, job.setup.seed)
    windows, asked = {}, {}
    for number, example in enumerate(examples):
        name = f"{task} {number}"
        windows[name] = example.tokens[: example.prefilled]
        asked[name] = (example.answer_start - 1, example.answer_start - example.distance)
    return windows, asked


def measure_maps(preset: Preset) -> None:
    """Record true and predicted maps of five heads on the first test document that is long enough."""
    job = preset.maps()
    require(preset, [job.tokens.file, *job.model.files, job.gates], [job.rows])
    run = start(job.setup, "maps", job.tokens, "test", [job.model])
    model = load_model(job.model, job.setup, job.tokens)
    document, window = next(iter(windows_of(job.tokens, job.context, 1, model).items()))
    gates = [gate.to(job.setup.device) for gate in load_gates(job.gates, job.gate.set)]
    fixed = {"model": job.model.name, "gate": str(job.gate)}
    rows = [fixed | row for row in maps.gate_maps(model, document, window, gates)]
    save("maps", job.rows, rows, run)
