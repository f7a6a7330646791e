"""Test that prompts are answered as the model generates, one by one or together, after a sparse prefill."""

import json

import numpy as np
import pytest
import torch

from measure.toy import CONFIG, TOKENS, Refuses
from seerbench.data.prompts import Prompt
from seerbench.errors import Refused
from seerbench.measure.arm import Arm
from seerbench.measure.generation import RoomyLayer, answer_prompts
from seerbench.methods.registry import create
from seerbench.models.hugging_face import attention_method
from seerbench.models.random_weights import random_model
from seerbench.rows.store import to_table

DENSE = Arm(create("dense"))
STREAMING = Arm(create("streaming", sparsity=0.7, block=16))


class Tokenizer:
    eos_token_id = 96

    def decode(self, tokens, skip_special_tokens):
        return " ".join(map(str, tokens))


def prompts(lengths=(288, 240, 272, 288, 256), new_tokens=6, references=("5",)):
    """Return prompts of these lengths, each with tokens of its own."""
    return [
        Prompt(
            "toy",
            number,
            320,
            "320",
            TOKENS[0, number : number + length].numpy(),
            new_tokens,
            references,
            "match_all",
        )
        for number, length in enumerate(lengths)
    ]


def generated(model, prompt, method):
    """Return the tokens that transformers generates for one prompt under a method, as text."""
    tokens = torch.from_numpy(prompt.ids)[None]
    with attention_method(model, method):
        output = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=prompt.new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    return Tokenizer().decode(output[0, len(prompt.ids) :].tolist(), True)


@pytest.mark.parametrize("arm", [DENSE, STREAMING], ids=["dense", "streaming"])
def test_answers_are_the_same_together_and_one_by_one(model, uncompiled, arm):
    asked = prompts()
    one_by_one = [generated(model, prompt, arm.method) for prompt in asked]
    assert len(set(one_by_one)) > 1
    for batch in (1, 3, 5, 9):
        rows = answer_prompts(model, Tokenizer(), asked, [arm], batch)
        assert [row["prediction"] for row in rows] == one_by_one
        assert [row["example"] for row in rows] == [0, 1, 2, 3, 4]
    sparsity = [row["sparsity_realised"] for row in rows]
    assert (set(sparsity) == {0.0}) == (arm.method.name == "dense")


def test_an_answer_ends_before_the_token_that_ends_a_text(model):
    (whole,) = answer_prompts(model, Tokenizer(), prompts((100,)), [DENSE], 1)
    tokens = whole["prediction"].split()
    tokenizer = Tokenizer()
    tokenizer.eos_token_id = int(tokens[2])
    (row,) = answer_prompts(model, tokenizer, prompts((100,)), [DENSE], 1)
    assert row["prediction"].split() == tokens[: tokens.index(tokens[2])]


def test_answers_that_have_ended_leave_the_batch_and_change_no_other(model, monkeypatch):
    asked = prompts(new_tokens=12)
    whole = [row["prediction"].split() for row in answer_prompts(model, Tokenizer(), asked, [DENSE], 5)]
    ends = {token for tokens in whole[:-1] for token in tokens} - set(whole[-1])  # the last answer goes on
    left = []
    select = RoomyLayer.batch_select_indices
    monkeypatch.setattr(
        RoomyLayer, "batch_select_indices", lambda layer, rows: (left.append(len(rows)), select(layer, rows))
    )
    monkeypatch.setattr("seerbench.measure.generation._ends", lambda *_: [int(end) for end in ends])
    together = answer_prompts(model, Tokenizer(), asked, [DENSE], 5)
    assert left
    for tokens, row in zip(whole, together, strict=True):
        end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        assert row["prediction"].split() == tokens[:end]


def test_arms_are_answered_side_by_side(model, uncompiled):
    asked = prompts()
    together = answer_prompts(model, Tokenizer(), asked, [DENSE, STREAMING], 7)
    alone = [row for arm in (DENSE, STREAMING) for row in answer_prompts(model, Tokenizer(), asked, [arm], 1)]
    assert together == alone


def test_rows_have_what_a_score_is_computed_from(model):
    (first,) = answer_prompts(model, Tokenizer(), prompts((100,)), [DENSE], 1)
    references = (first["prediction"].split()[0], "not there")
    (row,) = answer_prompts(model, Tokenizer(), prompts((100,), references=references), [DENSE], 1)
    assert row["score"] == 0.5
    assert json.loads(row["references"]) == list(references)
    assert (row["context"], row["bucket"]) == (320, "320")
    fixed = {"run_id": "r", "experiment": "ruler", "model": "m", "corpus": "c"}
    assert len(to_table("tasks", [fixed | row])) == 1


def test_a_refused_prompt_and_one_without_a_number_have_the_reason_and_no_mark(model):
    class RefusesLong(Refuses):
        sparsity = None

        def plan(self, q, k, layer):
            if q.shape[2] > 100:
                raise Refused("too long")

        def attend(self, q, k, v, plan):
            return DENSE.method.attend(q, k, v, None)

        def refuses(self, problem):
            return None

    first, second, third = answer_prompts(model, Tokenizer(), prompts((90, 110, 80)), [Arm(RefusesLong())], 3)
    assert second["reason"] == "too long"
    assert "score" not in second
    whole = answer_prompts(model, Tokenizer(), prompts((90, 110, 80)), [DENSE], 3)
    assert [first["prediction"], third["prediction"]] == [whole[0]["prediction"], whole[2]["prediction"]]
    broken = random_model(CONFIG, "cpu", "float32")
    broken.lm_head.weight.data.fill_(torch.nan)
    for row in answer_prompts(broken, Tokenizer(), prompts((90, 80)), [DENSE], 2):
        assert "not a number" in row["reason"]
        assert "prediction" not in row


def test_an_arm_that_skips_another_share_than_requested_is_refused(model, uncompiled):
    arm = Arm(create("streaming", sparsity=0.9, block=16))
    (row,) = answer_prompts(model, Tokenizer(), [prompts((64,))[0]], [arm], 1)
    assert "where 90.0% was requested" in row["reason"]
    assert np.isnan(row.get("score", np.nan))
