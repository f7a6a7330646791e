"""Test perplexity: dense loss is the model's own, and a method that refuses gets rows with its reason."""

import numpy as np
import pytest
import torch

from measure.toy import CONFIG, TOKENS, Refuses
from seerbench.errors import Refused
from seerbench.measure.arm import Arm
from seerbench.measure.perplexity import perplexity
from seerbench.methods.registry import create
from seerbench.models.random_weights import random_model

WINDOWS = {"a": TOKENS[0, :200].numpy(), "b": TOKENS[0, 200:400].numpy()}


def test_the_loss_of_a_dense_method_is_that_of_the_model(model):
    rows = perplexity(model, WINDOWS, [Arm(create("dense"))])
    assert [row["document"] for row in rows] == ["a", "b"]
    for row in rows:
        window = torch.from_numpy(np.asarray(WINDOWS[row["document"]]))[None]
        with torch.no_grad():
            expected = model(window, labels=window).loss.item()
        assert row["nll"] == pytest.approx(expected, rel=1e-5)
        assert (row["tokens"], row["sparsity_realised"], row["status"]) == (199, 0.0, "measured")


def test_only_the_last_tokens_are_scored_if_asked(model):
    (row,) = perplexity(model, {"a": WINDOWS["a"]}, [Arm(create("dense"))], scored=50)
    window = torch.from_numpy(np.asarray(WINDOWS["a"]))
    with torch.no_grad():
        logits = model(window[None]).logits[0]
    expected = torch.nn.functional.cross_entropy(logits[-51:-1], window[-50:]).item()
    assert row["tokens"] == 50
    assert row["nll"] == pytest.approx(expected, rel=1e-5)


class RefusesAll(Refuses):
    def plan(self, q, k, layer):
        raise Refused("needs a GPU")


def test_a_refusal_becomes_a_row_per_document(model):
    rows = perplexity(model, WINDOWS, [Arm(RefusesAll())])
    assert [(row["status"], row["reason"], row["nll"]) for row in rows] == [("refused", "needs a GPU", None)] * 2


@pytest.mark.parametrize("weight", [torch.inf, torch.nan])
def test_a_loss_that_is_no_number_is_a_failed_row(weight):
    broken = random_model(CONFIG, "cpu", "float32")
    broken.model.layers[1].mlp.down_proj.weight.data.fill_(weight)
    rows = perplexity(broken, WINDOWS, [Arm(create("dense")), Arm(create("streaming", sparsity=0.5, block=16))])
    assert [row["status"] for row in rows] == ["failed"] * 4
    assert {row["nll"] for row in rows} == {None}
    assert all("not a number" in row["reason"] for row in rows)
