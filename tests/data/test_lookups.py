"""Test look-ups: the answer is where the example says, only in the context, and never in training."""

import numpy as np
import pytest

from seerbench.data import lookup_parts, lookup_tasks, lookups, passages
from seerbench.data import windows as data_windows
from seerbench.errors import CorpusError


@pytest.mark.parametrize("task", ["passkey", "kv", "kv-shared", "cloze", "passage"])
def test_examples_hold_their_answer_where_they_say(setting, task):
    tokenizer, documents = setting
    examples = lookup_tasks.TASKS[task](documents["test"], tokenizer, 512, 12, 3)
    assert len(examples) == 12
    for example in examples:
        assert example.tokens.shape == (512,)
        assert example.tokens.dtype == np.int32
        assert example.tokens[0] == tokenizer.bos_token_id
        assert example.answer_start + example.answer_length == 512
        assert example.prefilled == example.answer_start  # the method sees the question and not the answer
        source = example.answer_start - example.distance
        assert source > 0
        np.testing.assert_array_equal(example.tokens[source : source + example.answer_length], example.answer)
        cue = example.tokens[example.answer_start - 3 : example.answer_start]
        np.testing.assert_array_equal(example.tokens[source - 3 : source], cue)


@pytest.mark.parametrize("task", lookup_tasks.TASKS)
def test_same_seed_same_examples(setting, task):
    tokenizer, documents = setting
    build, test = lookup_tasks.TASKS[task], documents["test"]
    first, again, other = (build(test, tokenizer, 256, 4, seed) for seed in (1, 1, 2))
    assert all((a.tokens == b.tokens).all() for a, b in zip(first, again, strict=True))
    assert any((a.tokens != b.tokens).any() for a, b in zip(first, other, strict=True))


def test_the_cue_of_a_passage_occurs_once_before_it_is_shown_again(setting):
    tokenizer, documents = setting
    for example in passages.passage(documents["test"], tokenizer, 512, 12, 0):
        text, start = example.tokens.tolist(), example.prefilled
        cue = text[start - passages.CUE : start]
        places = [at for at in range(start) if text[at : at + passages.CUE] == cue]
        assert places == [start - example.distance - passages.CUE, start - passages.CUE]
        assert example.answer_length == passages.ANSWER
    with pytest.raises(CorpusError, match="context of 162 tokens, not 150"):
        passages.passage(documents["test"], tokenizer, 150, 1, 0)
    same = {"a": np.full(900, 40, dtype=np.int32)}
    with pytest.raises(CorpusError, match="repeats itself less"):
        passages.passage(same, tokenizer, 512, 1, 0)


def test_passkey_is_five_different_digits_anywhere(setting):
    tokenizer, documents = setting
    examples = lookups.passkey(documents["test"], tokenizer, 512, 60, 0)
    codes = [tokenizer.decode(example.answer.tolist()) for example in examples]
    assert all(code.isdigit() and len(set(code)) == 5 for code in codes)
    assert len(set(codes)) > 50
    distances = [example.distance for example in examples]
    assert min(distances) < 100
    assert max(distances) > 400


def test_kv_keys_are_unambiguous(setting):
    tokenizer, documents = setting
    pieces = lookup_parts.pieces_of(tokenizer)
    for example in lookups.kv(documents["test"], tokenizer, 512, 20, 0):
        text = example.tokens.tolist()
        cue = [*pieces.kv.tolist(), int(example.tokens[-2])]
        places = [at for at in range(len(text) - 2) if text[at : at + len(cue)] == cue]
        assert len(places) == 2  # the pair, and the question
        assert sum(text[at : at + 3] == pieces.kv.tolist() for at in range(len(text))) >= lookup_parts.KV_PAIRS + 1


@pytest.mark.parametrize(("short", "longer"), [(386, [389, 401, 513]), (1026, [1153])])
def test_shared_prompts_differ_in_the_rows_before_the_question_alone(setting, short, longer):
    tokenizer, documents = setting
    question = len(lookup_parts.pieces_of(tokenizer).kv) + 1
    first = lookups.kv_shared(documents["test"], tokenizer, short, 12, 0)
    for context in longer:
        for a, b in zip(first, lookups.kv_shared(documents["test"], tokenizer, context, 12, 0), strict=True):
            np.testing.assert_array_equal(a.tokens[: -question - 1], b.tokens[: short - question - 1])
            np.testing.assert_array_equal(a.tokens[-question - 1 :], b.tokens[-question - 1 :])  # with the answer
            assert a.answer_start - a.distance == b.answer_start - b.distance  # the same place
    in_next_block = lookups.kv_shared(documents["test"], tokenizer, max(longer) + 1, 12, 0)
    assert any(a.tokens[5] != b.tokens[5] for a, b in zip(first, in_next_block, strict=True))
    sources = [example.answer_start - example.distance for example in first]
    assert max(sources) < short - 1 - question
    assert max(sources) - min(sources) > short // 2


def test_cloze_spans_occur_twice_in_the_window_and_in_no_other_document(setting):
    tokenizer, documents = setting
    span = lookups.CLOZE_CUE + lookups.CLOZE_ANSWER
    for example in lookups.cloze(documents["test"], tokenizer, 512, 12, 0):
        assert example.distance >= 256
        wanted = example.tokens[-span:].tobytes()
        width = example.tokens.itemsize

        def count(tokens, wanted=wanted, width=width):
            raw = tokens.tobytes()
            places = range(len(tokens) - span + 1)
            return sum(raw[at * width : (at + span) * width] == wanted for at in places)

        assert count(example.tokens) == 2
        assert sum(count(document) > 0 for document in documents["test"].values()) == 1


def test_too_little_text_is_refused(setting):
    tokenizer, documents = setting
    with pytest.raises(CorpusError, match="100000 examples"):
        lookups.cloze(documents["test"], tokenizer, 512, 100_000, 0)
    with pytest.raises(CorpusError, match="the split has 58"):
        lookups.passkey({"a": np.arange(3, 60)}, tokenizer, 512, 1, 0)
    with pytest.raises(CorpusError, match="pass-key"):
        lookups.passkey(documents["test"], tokenizer, 16, 1, 0)
    with pytest.raises(CorpusError, match="130 tokens, not 129"):
        lookups.kv_shared(documents["test"], tokenizer, 129, 1, 0)


def test_training_lookups_weigh_answers_and_not_what_nothing_predicts(setting):
    tokenizer, documents = setting
    pieces = lookup_parts.pieces_of(tokenizer)
    stream = data_windows.packed(documents["train"], tokenizer.eos_token_id)
    rng = np.random.default_rng(0)
    for task, answers in (("passkey", 5), ("kv", 4)):
        for context in (64, 256):
            questions = answers if context == 256 or task == "passkey" else 1
            tokens, weights = lookups.training_lookups(
                stream, pieces, context, 8, rng, task=task, answer_weight=7.0
            )
            assert tokens.shape == weights.shape == (8, context)
            assert ((weights == 7).sum(1) == questions).all()
            for row in range(8):
                answered = set(tokens[row, weights[row] == 7])
                assert answered <= set(tokens[row, weights[row] == 0])


def test_training_repeats_count_only_what_can_be_copied(setting):
    tokenizer, documents = setting
    pieces = lookup_parts.pieces_of(tokenizer)
    stream = data_windows.packed(documents["train"], tokenizer.eos_token_id)
    for apart in (0.0, 1.0):
        tokens, weights = lookups.training_repeats(
            stream, pieces, 129, 16, np.random.default_rng(0), vocab=1024, length=(16, 64), apart=apart
        )
        assert weights.any()
        for row in range(16):
            last = tokens[row, -8:]
            windows = np.lib.stride_tricks.sliding_window_view(tokens[row, :-8], 8)
            assert (windows == last).all(1).any()  # The last tokens occur earlier in the window.
            assert not weights[row, :17].any()


def test_evaluation_codes_are_not_those_of_training(setting):
    """Check that evaluation and training draw from different random streams, even with one seed and one text."""
    tokenizer, documents = setting
    pieces = lookup_parts.pieces_of(tokenizer)
    stream = data_windows.packed(documents["test"], tokenizer.eos_token_id)
    evaluated = {e.tokens.tobytes() for e in lookups.passkey(documents["test"], tokenizer, 256, 20, 0)}
    for step in range(20):
        rng = np.random.default_rng([0, lookup_parts.TRAINING, step])
        trained, _ = lookups.training_lookups(stream, pieces, 256, 4, rng, task="passkey", answer_weight=1.0)
        assert not evaluated & {row.tobytes() for row in trained}
