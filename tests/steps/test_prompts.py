"""Test the steps of generated answers: RULER at two lengths, a killed step, and a question set of one's own."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest

from seerbench.data.ruler import needles
from seerbench.data.ruler.tasks import TASKS
from seerbench.data.tokens import tokenize, train_tokenizer
from seerbench.errors import ModelError
from seerbench.models.model_source import ModelSource
from seerbench.models.random_weights import random_model
from seerbench.presets.jobs import ArmJob, ModelArms, QuestionSetJob, RulerJob, Setup, TokenizerSource, Tokens
from seerbench.rows.store import read_rows
from seerbench.steps import prompts as step

SETUP = Setup("toy", "toy", "a toy", "toy", "cpu", "float32", 0, 16)
GEOMETRY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 900,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a folder with a tokenizer and a tokenized corpus, and a model of that vocabulary."""
    folder = tmp_path_factory.mktemp("ruler")
    text = " ".join([*needles.ONE, *needles.MANY])
    tokenizer = train_tokenizer([text] * 9, 500, folder / "tokenizer")
    texts = pd.DataFrame({"id": ["a", "b"], "text": ["It rained. It snowed!"] * 2, "split": ["train", "test"]})
    tokenize(texts, tokenizer, folder / "tokens.parquet", name="books", source={}, read="toy")
    model = random_model(GEOMETRY | {"vocab_size": len(tokenizer)}, "cpu", "float32")
    return SimpleNamespace(folder=folder, tokenizer=tokenizer, model=model)


@pytest.fixture
def loaded(world, monkeypatch):
    monkeypatch.setattr(step, "load_model", lambda source, setup: world.model)
    monkeypatch.setattr(step, "tokenizer_of", lambda source: world.tokenizer)
    for name in ("niah_single_1", "niah_single_2"):  # short answers, for the sake of time
        monkeypatch.setitem(TASKS, name, replace(TASKS[name], new_tokens=3))
    return world


def groups():
    return (ModelArms(ModelSource("toy", "nowhere"), (ArmJob("dense", None, 16), ArmJob("dense", None, 16))),)


def ruler(world, out, **changes):
    options = {
        "setup": SETUP,
        "experiment": "ruler",
        "tokens": Tokens("books", world.folder / "tokens.parquet"),
        "tokenizer": TokenizerSource(world.folder / "tokenizer"),
        "contexts": (700, 800),
        "examples": 2,
        "tasks": ("niah_single_1", "niah_single_2", "qa_1"),
        "question_sets": {"qa_1": out.parent / "qa_1.parquet"},
        "batch": 2,
        "groups": groups(),
        "rows": out,
    }
    return RulerJob(**options | changes)


def test_every_task_length_example_and_arm_has_a_row(loaded, tmp_path, capsys):
    out = tmp_path / "ruler.parquet"
    step.measure_ruler(ruler(loaded, out))
    rows, runs, _ = read_rows(out, "tasks")
    assert len(rows) == 2 * 2 * 2 * 2
    assert set(rows.task) == {"niah_single_1", "niah_single_2-books"}
    assert set(zip(rows.context, rows.bucket, strict=True)) == {(700, "700"), (800, "800")}
    assert rows.score.between(0, 1).all()
    assert rows.depth.between(0, 1).all()
    assert rows.references.map(json.loads).map(len).eq(1).all()
    assert runs[0]["corpus"] == "books"
    assert "qa_1 is left out" in capsys.readouterr().err


def test_a_killed_step_loses_one_task_and_length(loaded, tmp_path, monkeypatch):
    out, answered = tmp_path / "ruler.parquet", []
    real = step.answer_prompts

    def killed_at_third(model, tokenizer, prompts, *more):
        if len(answered) == 2:
            raise KeyboardInterrupt
        answered.append((prompts[0].task, prompts[0].context))
        return real(model, tokenizer, prompts, *more)

    monkeypatch.setattr(step, "answer_prompts", killed_at_third)
    with pytest.raises(KeyboardInterrupt):
        step.measure_ruler(ruler(loaded, out))
    assert not out.exists()

    def recorded(model, tokenizer, prompts, *more):
        answered.append((prompts[0].task, prompts[0].context))
        return real(model, tokenizer, prompts, *more)

    monkeypatch.setattr(step, "answer_prompts", recorded)
    step.measure_ruler(ruler(loaded, out))
    tasks = ("niah_single_1", "niah_single_2-books")
    assert answered == [(task, context) for task in tasks for context in (700, 800)]
    rows, runs, _ = read_rows(out, "tasks")
    assert (len(rows), len(runs)) == (16, 2)


def test_a_length_beyond_the_positions_of_a_model_is_refused(loaded, tmp_path):
    with pytest.raises(ModelError, match="length of 1000 tokens, and the model has 900 positions"):
        step.measure_ruler(ruler(loaded, tmp_path / "ruler.parquet", contexts=(1000,)))


def test_questions_of_ones_own_are_answered(loaded, tmp_path):
    question = {"id": "a", "context": "Ann has a hat.", "question": "Who?", "answers": ["Ann"], "metric": "f1"}
    pd.DataFrame([question, question | {"id": "b"}]).to_parquet(tmp_path / "mine.parquet")
    out = tmp_path / "answers.parquet"
    step.measure_question_set(
        QuestionSetJob(SETUP, "mine", tmp_path / "mine.parquet", new_tokens=3, batch=2, groups=groups(), rows=out)
    )
    rows, runs, _ = read_rows(out, "tasks")
    assert rows.example.tolist() == [0, 1, 0, 1]
    assert set(rows.task) == set(rows.corpus) == {"mine"}
    assert rows.score.between(0, 1).all()
    assert len(runs[0]["corpus_sha256"]) == 64
