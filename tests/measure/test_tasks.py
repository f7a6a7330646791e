"""Test that look-ups are scored by the model's own argmax, and that length buckets have labels."""

from types import SimpleNamespace

import torch

from measure.toy import CONFIG, TOKENS, Refuses
from seerbench.errors import Refused
from seerbench.measure.arm import Arm
from seerbench.measure.tasks import bucket_of, retrieval
from seerbench.methods.registry import create
from seerbench.models.random_weights import random_model


def test_an_answer_is_correct_if_each_token_has_the_highest_logit(model):
    tokens = TOKENS[0, :120].clone()
    with torch.no_grad():
        tokens[100] = model(tokens[None]).logits[0, 99].argmax()
        tokens[101] = model(tokens[None]).logits[0, 100].argmax()
    wrong = tokens.clone()
    wrong[101] = (wrong[101] + 1) % 97
    about = {"task": "kv", "context": 120, "distance": 9, "answer_start": 100, "answer_length": 2}
    examples = [SimpleNamespace(tokens=each.numpy(), **about) for each in (tokens, wrong, tokens)]
    rows = retrieval(model, examples, [Arm(create("dense"))], batch=2)
    assert [row["correct"] for row in rows] == [True, False, True]
    assert [row["example"] for row in rows] == [0, 1, 2]
    assert {row["sparsity_realised"] for row in rows} == {0.0}


def test_an_example_without_a_number_or_with_a_refusal_has_the_reason_and_no_mark(model):
    about = {"task": "kv", "context": 120, "distance": 9, "answer_start": 100, "answer_length": 2}
    examples = [SimpleNamespace(tokens=TOKENS[0, :120].numpy(), **about)]
    broken = random_model(CONFIG, "cpu", "float32")
    broken.lm_head.weight.data.fill_(torch.nan)
    (row,) = retrieval(broken, examples, [Arm(create("dense"))], batch=2)
    assert "correct" not in row
    assert "not a number" in row["reason"]

    class RefusesAll(Refuses):
        def plan(self, q, k, layer):
            raise Refused("needs a GPU")

    (row,) = retrieval(model, examples, [Arm(RefusesAll())], batch=2)
    assert "correct" not in row
    assert row["reason"] == "needs a GPU"


def test_a_bucket_begins_at_the_context_before():
    assert [bucket_of([256, 512, 1024], context) for context in (256, 512, 1024)] == [
        "128-256",
        "256-512",
        "512-1024",
    ]
