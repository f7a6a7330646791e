"""accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from seerbench.data import longbench, texts
from seerbench.data import tokens as data_tokens
from seerbench.measure import maps, perplexity, recall, tasks
from seerbench.methods.gate_files import load_gates
from seerbench.presets.preset import Preset, expand
from seerbench.steps.arms import make_arms
from seerbench.steps.common import _model, _windows, save, start
from seerbench.steps.data import _tokenizer


def measure_perplexity(preset: Preset, experiment: str) -> None:
    """One perplexity experiment: every context, arm and document."""
    about = preset.one_of("perplexity", experiment)
    run = start(preset, f"perplexity {experiment}", about["corpus"], "test")
    rows = []
    with tqdm(total=0, desc=f"perplexity {experiment}", unit="doc", mininterval=1) as bar:
        for name, flat in _by_model(preset, about):
            model = _model(preset, name, about["corpus"])
            arms = make_arms(preset, name, flat)
            for context in about["contexts"]:
                windows = _windows(
                    preset,
                    about["corpus"],
                    context,
                    about.get("documents"),
                    model,
                    longest=max(about["contexts"]),
                    aligned="scored" in about,
                    reaching=about.get("reaching"),
                )
                bar.total += len(windows) * len(arms)
                fixed = {"experiment": experiment, "model": name, "corpus": about["corpus"]}
                found = perplexity.perplexity(model, windows, arms, bar, about.get("scored"))
                rows += [fixed | row for row in found]
    save(preset, "perplexity", experiment, rows, run)


def measure_tasks(preset: Preset, experiment: str) -> None:
    """One experiment of tasks: retrieval at given lengths, or LongBench-E."""
    if "longbench" in preset.one_of("tasks", experiment):
        measure_longbench(preset, experiment)
    else:
        measure_retrieval(preset, experiment)


def measure_longbench(preset: Preset, experiment: str) -> None:
    """LongBench-E: every question and arm, answered and scored."""
    about = preset.one_of("tasks", experiment)
    run = start(preset, f"tasks {experiment}")
    files = [longbench.ARCHIVE, "*_e.jsonl", "data/*_e.jsonl"]
    folder = texts.dataset_folder(str(preset.local(about["longbench"])), files, about.get("revision"))
    questions = longbench.read_examples(folder, about.get("tasks", list(longbench.TASKS)), about.get("examples"))
    run |= {"corpus": longbench.CORPUS, "corpus_sha256": longbench.digest(questions), "corpus_split": "test"}
    rows = []
    with tqdm(total=0, desc=f"tasks {experiment}", unit="answer", mininterval=1) as bar:
        for name, flat in _by_model(preset, about):
            model = _model(preset, name)
            arms = make_arms(preset, name, flat)
            bar.total += len(questions) * len(arms)
            found = tasks.answers(model, _tokenizer(preset, name), questions, arms, bar)
            rows += [{"experiment": experiment, "model": name, "corpus": longbench.CORPUS} | row for row in found]
    save(preset, "tasks", experiment, rows, run)


def measure_retrieval(preset: Preset, experiment: str) -> None:
    """One retrieval experiment: every task, length bucket, arm and example."""
    about = preset.one_of("tasks", experiment)
    run = start(preset, f"tasks {experiment}", about["corpus"], "test")
    rows = []
    groups = _by_model(preset, about)
    documents = data_tokens.read_tokens(preset.tokens(about["corpus"]), "test")
    tokenizer = data_tokens.load_tokenizer(preset.tokenizer)
    arms_in_all = sum(len(flat) for _, flat in groups)
    total = len(about["tasks"]) * len(about["contexts"]) * arms_in_all * about["examples"]
    examples = {
        (task, context): tasks.TASKS[task](documents, tokenizer, context, about["examples"], preset.config["seed"])
        for task in about["tasks"]
        for context in about["contexts"]
    }
    with tqdm(total=total, desc=f"tasks {experiment}", unit="example", mininterval=1) as bar:
        for name, flat in groups:
            model = _model(preset, name, about["corpus"])
            arms = make_arms(preset, name, flat)
            for (_, context), asked in examples.items():
                fixed = {
                    "experiment": experiment,
                    "model": name,
                    "corpus": about["corpus"],
                    "bucket": tasks.bucket_of(about["contexts"], context),
                }
                found = tasks.retrieval(model, asked, arms, about["batch"], bar)
                rows += [fixed | row for row in found]
    save(preset, "tasks", experiment, rows, run)


def measure_recall(preset: Preset, experiment: str) -> None:
    """Block recall of every arm against the oracle."""
    about = preset.one_of("recall", experiment)
    run = start(preset, f"recall {experiment}", about["corpus"], "test")
    name, rows = about["model"], []
    model = _model(preset, name, about["corpus"])
    arms = make_arms(preset, name, expand(about["arms"]))
    for context in about["contexts"]:
        windows = _windows(
            preset, about["corpus"], context, about["documents"], model, longest=max(about["contexts"])
        )
        fixed = {"experiment": experiment, "model": name, "corpus": about["corpus"]}
        found = recall.recall(model, windows, arms, preset.config["block"])
        rows += [fixed | row for row in found]
    save(preset, "recall", experiment, rows, run)


def measure_maps(preset: Preset) -> None:
    """True and predicted maps of five heads on the first test document that is long enough."""
    about = preset.config["maps"]
    run = start(preset, "maps", about["corpus"], "test")
    model = _model(preset, about["model"], about["corpus"])
    windows = _windows(preset, about["corpus"], about["context"], 1, model)
    document, window = next(iter(windows.items()))
    job, _, gate_set = about["gate"].partition(":")
    gates = [gate.to(preset.config["device"]) for gate in load_gates(preset.gates(job), gate_set)]
    rows = maps.gate_maps(model, document, window, gates)
    fixed = {"model": about["model"], "gate": about["gate"]}
    save(preset, "maps", "maps", [fixed | row for row in rows], run)


def _by_model(preset: Preset, about: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The flat arms grouped by the model that they run in, in order of first use."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in expand(about["arms"]):
        groups.setdefault(one.get("model", about["model"]), []).append(one)
    return list(groups.items())
