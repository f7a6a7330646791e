"""Test that look-ups are answered as the model generates, or scored in the prompt, and that buckets have labels."""

import numpy as np
import torch

from measure.toy import CONFIG, TOKENS, Refuses
from seerbench.core.block_mask import BlockMask
from seerbench.data.lookup_parts import Example
from seerbench.errors import Refused
from seerbench.measure.arm import Arm
from seerbench.measure.tasks import asking_rows, bucket_of, retrieval
from seerbench.methods.protocol import BlockSparse
from seerbench.methods.registry import create
from seerbench.models.hugging_face import attention_method
from seerbench.models.random_weights import random_model

DENSE = Arm(create("dense"))
STREAMING = create("streaming", sparsity=0.7, block=16)


class Tokenizer:
    def decode(self, tokens):
        return " ".join(map(str, tokens))


def example(tokens, start, length, prefilled):
    return Example("kv", len(tokens), np.asarray(tokens), start, length, 9, prefilled)


def score(model, examples, arm=DENSE, batch=2):
    return retrieval(model, Tokenizer(), examples, [arm], batch)


def test_an_answer_in_the_prompt_is_correct_if_each_token_has_the_highest_logit(model):
    tokens = TOKENS[0, :120].clone()
    with torch.no_grad():
        tokens[100] = model(tokens[None]).logits[0, 99].argmax()
        tokens[101] = model(tokens[None]).logits[0, 100].argmax()
    wrong = tokens.clone()
    wrong[101] = (wrong[101] + 1) % 97
    rows = score(model, [example(each, 100, 2, 120) for each in (tokens, wrong, tokens)])
    assert [row["correct"] for row in rows] == [True, False, True]
    assert [row["example"] for row in rows] == [0, 1, 2]
    assert {row["sparsity_realised"] for row in rows} == {0.0}


def test_questions_of_one_window_are_scored_each_at_its_place(model):
    tokens = TOKENS[0, :120].clone()
    with torch.no_grad():
        for place in (60, 80, 100):
            tokens[place] = model(tokens[None]).logits[0, place - 1].argmax()
    right = [example(tokens, place, 1, 120) for place in (100, 60, 80)]
    assert [row["correct"] for row in score(model, right, batch=3)] == [True] * 3
    changed = tokens.clone()
    changed[100] = (changed[100] + 1) % 97
    mixed = [right[1], example(changed, 100, 1, 120), example(changed, 80, 1, 120)]
    assert [row["correct"] for row in score(model, mixed, batch=3)] == [True, False, True]


class SparsePromptDenseAnswer(BlockSparse):
    """StreamingLLM on the first 96 tokens and dense attention in the rows after them, in one forward pass."""

    name, sparsity, block = "reference", 0.7, 16

    def plan(self, q, k, layer):
        kept = STREAMING.plan(q[:, :, :96], k[:, :, :96], layer).to_dense()
        dense = torch.ones(*kept.shape[:2], 1, 7, dtype=torch.bool)
        kept = torch.cat([torch.nn.functional.pad(kept, (0, 1)), dense], 2)
        return BlockMask.from_dense(kept, q.shape[2], 16, 16)


@torch.no_grad()
def test_an_answer_is_generated_after_a_sparse_prompt(model, uncompiled):
    tokens = TOKENS[:, :102].clone()
    answers = {}
    for method, reference in ((create("dense"), create("dense")), (STREAMING, SparsePromptDenseAnswer())):
        with attention_method(model, reference):
            for place in range(96, 102):
                tokens[0, place] = model(tokens).logits[0, place - 1].argmax()
        (row,) = score(model, [example(tokens[0].clone(), 96, 6, 96)], Arm(method))
        assert row["correct"]
        answers[method.name] = row["prediction"]
        assert row["prediction"] == Tokenizer().decode(tokens[0, 96:].tolist())
        tokens[0, -1] = (tokens[0, -1] + 1) % 97
        assert not score(model, [example(tokens[0], 96, 6, 96)], Arm(method))[0]["correct"]
    assert answers["dense"] != answers["streaming"]


def test_a_second_question_is_fed_after_the_prompt_with_dense_decoding(model, uncompiled):
    tokens = TOKENS[0, :110].clone()
    with torch.no_grad():
        tokens[109] = model(tokens[None, :109]).logits[0, -1].argmax()
    (row,) = score(model, [example(tokens, 109, 1, 90)])
    assert row["correct"]
    (row,) = score(model, [example(tokens, 109, 1, 90)], Arm(STREAMING))
    with attention_method(model, STREAMING) as record, torch.no_grad():
        model.model(tokens[None, :90], use_cache=False)
    assert row["sparsity_realised"] == record.mean_sparsity()  # that of the prompt alone


def test_an_example_without_a_number_or_with_a_refusal_has_the_reason_and_no_mark(model):
    examples = [example(TOKENS[0, :120], 100, 2, prefilled) for prefilled in (100, 120)]
    broken = random_model(CONFIG, "cpu", "float32")
    broken.lm_head.weight.data.fill_(torch.nan)
    for row in score(broken, examples, batch=1):
        assert "correct" not in row
        assert "not a number" in row["reason"]

    class RefusesAll(Refuses):
        def plan(self, q, k, layer):
            raise Refused("needs a GPU")

    for row in score(model, examples, Arm(RefusesAll()), batch=1):
        assert "correct" not in row
        assert row["reason"] == "needs a GPU"


def test_asking_rows_are_those_of_the_last_block_of_the_prompt():
    tokens = TOKENS[0, :120]
    rows = [asking_rows(example(tokens, start, 1, start), 16) for start in (96, 97, 112)]
    assert rows == [16, 1, 16]
    assert asking_rows(example(tokens, 97, 1, 120), 16) == 16  # asked in the middle of the prompt
    assert asking_rows(example(tokens, 118, 1, 120), 16) == 8  # in its last block, which is not full
    assert asking_rows(example(tokens, 118, 1, 100), 16) is None
    assert asking_rows(example(tokens, 97, 1, 97), None) is None


def test_a_bucket_begins_at_the_context_before():
    assert [bucket_of([256, 512, 1024], context) for context in (256, 512, 1024)] == [
        "128-256",
        "256-512",
        "512-1024",
    ]
