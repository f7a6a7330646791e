"""Test answers and losses under methods for decoding: side by side or alone they are those of `generate`."""

import numpy as np
import pytest
import torch

from measure.test_generation import Tokenizer, prompts
from measure.toy import TOKENS, Refuses
from seerbench.baselines.decode.dense import DenseDecode
from seerbench.baselines.decode.oracle import OracleDecode
from seerbench.baselines.decode.quest import QuestDecode
from seerbench.baselines.decode.streaming import StreamingDecode
from seerbench.data.lookup_parts import Example
from seerbench.errors import Refused
from seerbench.measure.arm import Arm
from seerbench.measure.generation import answer_prompts
from seerbench.measure.perplexity import decoded_perplexity, perplexity
from seerbench.measure.tasks import _decoded, retrieval
from seerbench.methods.decode_gate import DecodeGate
from seerbench.methods.decode_gate_config import DecodeGateConfig
from seerbench.methods.registry import create
from seerbench.methods.seer_decode import SeerDecode
from seerbench.models.hugging_face import attention_method, generate
from seerbench.rows.gate_ref import GateRef
from seerbench.rows.store import to_table

BLOCK, BUDGET, DECODED = 16, 48, 21
STREAMING = create("streaming", sparsity=0.7, block=BLOCK)
PLAIN = {"do_sample": False, "pad_token_id": 0, "eos_token_id": 1000}  # no token ends a text
WINDOWS = {name: TOKENS[0, start : start + 200].numpy() for name, start in (("a", 0), ("b", 200), ("c", 300))}


def gate_method(**options):
    torch.manual_seed(0)
    gates = [DecodeGate(DecodeGateConfig(block=BLOCK), 4, 2, 32).requires_grad_(False) for _ in range(3)]
    for parameter in (each for gate in gates for each in gate.parameters()):
        torch.nn.init.normal_(parameter)  # initial weights are so small that blocks score alike
    return SeerDecode(gates, **options or {"budget": BUDGET})


def methods():
    baselines = [method(BUDGET, BLOCK) for method in (QuestDecode, StreamingDecode, OracleDecode)]
    return [DenseDecode(), gate_method(), gate_method(threshold=0.08), *baselines]


@pytest.mark.parametrize("decode", methods(), ids=lambda method: f"{method.name}-{method.threshold}")
def test_answers_are_those_of_generate_together_and_one_by_one(model, uncompiled, decode):
    """Prompts of several lengths finish their blocks in different steps."""
    asked, arm = prompts((288, 275, 250), new_tokens=18), Arm(STREAMING, decode=decode)
    wanted, skipped = [], []
    for prompt in asked:
        tokens = torch.from_numpy(prompt.ids)[None]
        options = PLAIN | {"max_new_tokens": 18, "attention_mask": torch.ones_like(tokens)}
        texts, record = generate(model, tokens, STREAMING, decode, **options)
        wanted.append(Tokenizer().decode(texts[0, len(prompt.ids) :].tolist(), True))
        skipped.append(record.mean_decode_sparsity())
    alone, together = (answer_prompts(model, Tokenizer(), asked, [arm], batch) for batch in (1, 3))
    for rows in (alone, together):
        assert [row["prediction"] for row in rows] == wanted
    assert [row["decode_sparsity"] for row in alone] == skipped
    assert (max(skipped) > 0.3) == (decode.name != "dense")
    assert [row["decode_sparsity"] for row in together] == pytest.approx([np.mean(skipped)] * 3, abs=1e-5)
    fixed = dict.fromkeys(("run_id", "experiment", "model", "corpus"), "x")
    assert len(to_table("tasks", [fixed | row for row in together])) == 3


def test_answers_that_have_ended_leave_the_batch_with_what_is_kept_of_them(model, monkeypatch):
    """The method chooses blocks of the texts that go on as if they had been alone."""
    asked, arm = prompts(new_tokens=12), Arm(create("dense"), decode=gate_method())
    whole = [row["prediction"].split() for row in answer_prompts(model, Tokenizer(), asked, [arm], 1)]
    ends = {token for tokens in whole[:-1] for token in tokens[:6]} - set(whole[-1])
    monkeypatch.setattr("seerbench.measure.generation._ends", lambda *_: [int(end) for end in ends])
    together = answer_prompts(model, Tokenizer(), asked, [arm], 5)
    for tokens, row in zip(whole, together, strict=True):
        end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        assert row["prediction"].split() == tokens[:end]
    assert [len(row["prediction"].split()) for row in together].count(12) == 1


def test_arms_that_decode_alike_share_a_batch_and_others_do_not(model):
    arms = [
        Arm(create("dense")),
        Arm(create("dense"), decode=gate_method()),
        Arm(create("dense"), decode=DenseDecode()),
    ]
    rows = answer_prompts(model, Tokenizer(), prompts((100, 90)), arms, 4)
    assert [row.get("decode") for row in rows] == [None, None, "seer-r", "seer-r", "dense", "dense"]
    assert [row.get("decode_sparsity") for row in rows[:2]] == [None, None]
    assert [row["prediction"] for row in rows[:2]] == [row["prediction"] for row in rows[4:]]


def test_rows_name_how_they_were_decoded(model):
    labels = Arm(create("dense"), decode=gate_method(), decode_gate=GateRef("decode", "r")).decode_labels()
    assert labels == {
        "decode": "seer-r",
        "decode_gate": "decode:r",
        "decode_block": BLOCK,
        "decode_budget": BUDGET,
        "decode_threshold": None,
    }
    assert Arm(create("dense"), decode=DenseDecode()).decode_labels()["decode_block"] is None
    assert Arm(create("dense")).decode_labels() == {}


def losses(model, arm, windows=WINDOWS, batch=2):
    rows = decoded_perplexity(model, windows, [arm], DECODED, batch)
    fixed = dict.fromkeys(("run_id", "experiment", "model", "corpus"), "x")
    assert len(to_table("perplexity", [fixed | row for row in rows])) == len(windows)
    return rows


@pytest.mark.parametrize(
    "decode", [DenseDecode(), gate_method(budget=4096), QuestDecode(4096, BLOCK)], ids=lambda m: m.name
)
def test_a_loss_whose_decoding_reads_everything_is_that_of_a_dense_forward_pass(model, decode):
    rows = losses(model, Arm(create("dense"), decode=decode))
    wanted = perplexity(model, WINDOWS, [Arm(create("dense"))], scored=DECODED)
    assert [row["nll"] for row in rows] == pytest.approx([row["nll"] for row in wanted], rel=1e-5)
    assert [(row["document"], row["tokens"], row["context"]) for row in rows] == [(n, DECODED, 200) for n in "abc"]
    assert {row["decode_sparsity"] for row in rows} == {0.0}


@torch.no_grad()
@pytest.mark.parametrize("decode", methods()[1:], ids=lambda method: f"{method.name}-{method.threshold}")
def test_losses_are_those_of_single_steps_whatever_is_decoded_together(model, uncompiled, decode):
    rows = losses(model, Arm(STREAMING, decode=decode))
    alone = losses(model, Arm(STREAMING, decode=decode), batch=1)
    assert [row["nll"] for row in rows] == pytest.approx([row["nll"] for row in alone], rel=1e-4)
    forced = torch.from_numpy(WINDOWS["b"])
    logits = []

    class Given:
        """Lets `generate` continue a text with its own tokens, and keeps the logits."""

        def __call__(self, tokens, scores):
            logits.append(scores[0].clone())
            one = torch.full_like(scores, -torch.inf)
            one[0, forced[tokens.shape[1]]] = 0
            return one

    start = len(forced) - DECODED - 1
    options = PLAIN | {"max_new_tokens": DECODED + 1, "attention_mask": torch.ones(1, start, dtype=torch.long)}
    generate(model, forced[None, :start], STREAMING, decode, logits_processor=[Given()], **options)
    wanted = torch.nn.functional.cross_entropy(torch.stack(logits[1:]), forced[-DECODED:])
    assert alone[1]["nll"] == pytest.approx(wanted.item(), rel=1e-4)
    assert alone[1]["nll"] != pytest.approx(losses(model, Arm(STREAMING, decode=DenseDecode()))[1]["nll"], rel=1e-4)


def test_a_refusal_becomes_a_row_per_document_and_stops_no_other(model):
    class RefusesOne(Refuses):
        sparsity = None

        def plan(self, q, k, layer):
            if q.shape[2] != 78:
                raise Refused("needs a GPU")

        def refuses(self, problem):
            return None

        def attend(self, q, k, v, plan):
            return create("dense").attend(q, k, v, None)

    windows = {"a": WINDOWS["a"], "b": WINDOWS["b"][:100]}
    first, second = losses(model, Arm(RefusesOne(), decode=DenseDecode()), windows)
    assert (first["status"], first["reason"], first["nll"]) == ("refused", "needs a GPU", None)
    assert (second["status"], second["tokens"]) == ("measured", DECODED)
    other = gate_method()
    other.model_layers = 7
    assert {row["status"] for row in losses(model, Arm(create("dense"), decode=other))} == {"refused"}


def test_a_generated_answer_has_the_share_of_its_right_tokens_as_score(model):
    arm = Arm(create("dense"), decode=gate_method())
    prompt = prompts((100,), new_tokens=8)[0]
    (row,) = answer_prompts(model, Tokenizer(), [prompt], [arm], 1)
    answer = [int(token) for token in row["prediction"].split()]
    wrong = answer[:6] + [(token + 1) % 97 for token in answer[6:]]
    examples = [
        Example("passage", 108, np.array([*prompt.ids, *right]), 100, 8, 50, 100) for right in (answer, wrong)
    ]
    found = retrieval(model, DecodesAll(), examples, [arm], 2)
    assert [(each["correct"], each["score"]) for each in found] == [(True, 1.0), (False, 0.75)]
    assert {(each["decode"], each["decode_budget"]) for each in found} == {("seer-r", BUDGET)}
    assert found[0]["decode_sparsity"] > 0.3


@torch.no_grad()
def test_tokens_of_a_given_answer_are_predicted_after_the_right_ones(model):
    """With a budget that covers everything, the logits are those of one dense forward pass."""
    tokens = TOKENS[:2, :108]
    wanted = model(tokens).logits[:, 99:107]
    with attention_method(model, create("dense"), decode=gate_method(budget=1024)):
        given, generated = (_decoded(model, tokens, 100, 100, 8, given) for given in (True, False))
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(generated[:, :1], wanted[:, :1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(generated, wanted, rtol=1e-2, atol=1e-2)


class DecodesAll:
    def decode(self, tokens):
        return " ".join(map(str, tokens))
