"""Test question sets that a user brings: reading, prompts, and marks by LongBench's metrics."""

import pandas as pd
import pytest
from standins import make_tokenizer

from seerbench.data.question_sets import bucket_of, prompts_of, read_questions
from seerbench.data.tokens import load_tokenizer, train_tokenizer
from seerbench.errors import CorpusError

ROW = {"id": "a", "context": "Ann has a red hat.", "question": "Who has a hat?", "answers": ["Ann"], "metric": "f1"}


def written(folder, *rows):
    pd.DataFrame(list(rows)).to_parquet(folder / "mine.parquet")
    return folder / "mine.parquet"


def test_each_row_is_a_prompt_with_a_metric_of_its_own(tmp_path):
    tokenizer = train_tokenizer(["a b"], 300)
    other = {"id": "b", "context": "x", "question": "which?", "answers": "City", "metric": "classification"}
    third = other | {"id": "c", "answers": "Date"}
    questions = read_questions(written(tmp_path, ROW, other | {"answers": ["City"]}, third | {"answers": ["Date"]}))
    first, second, _ = prompts_of(questions, tokenizer, "mine", 4096, 20)
    assert tokenizer.decode(first.ids) == "Ann has a red hat.\n\nWho has a hat?"
    assert (first.context, first.bucket, first.new_tokens) == (len(first.ids), "32-64", 20)
    # {ann, smith} against {ann}: 2 * 1 / 3
    assert first.score("Ann Smith") == pytest.approx(2 / 3)
    assert second.score("City or Date") == 0.5


def test_one_answer_may_be_a_text(tmp_path):
    (question,) = read_questions(written(tmp_path, ROW | {"answers": "Ann"}))
    assert question.answers == ("Ann",)


def test_a_long_context_loses_its_middle_and_never_the_question(tmp_path):
    tokenizer = load_tokenizer(make_tokenizer(tmp_path / "t"))
    row = ROW | {"context": "first " + "word " * 300 + "last"}
    questions = read_questions(written(tmp_path, row))
    (prompt,) = prompts_of(questions, tokenizer, "mine", 400, 20)
    text = tokenizer.decode(prompt.ids)
    assert prompt.cut
    assert 360 < len(prompt.ids) <= 380
    assert "\n\nfirst word" in text
    assert "word last\n\nWho has a hat?<|eot_id|>" in text
    with pytest.raises(CorpusError, match="question a with its answer needs more than 40 tokens"):
        list(prompts_of(questions, tokenizer, "mine", 40, 20))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metric": "bleu"}, "row 1: no metric 'bleu'; known: match_all"),
        ({"answers": []}, "row 1: a value is empty"),
        ({"question": ""}, "row 1: a value is empty"),
        ({"context": 5}, "row 1: a value is empty or no text"),
        ({"metric": "retrieval"}, "needs answers such as 'Paragraph 12'"),
    ],
)
def test_a_wrong_row_is_refused_with_its_number(tmp_path, change, words):
    with pytest.raises(CorpusError, match=words):
        read_questions(written(tmp_path, ROW | change))


def test_a_file_without_a_column_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="no column metric"):
        read_questions(written(tmp_path, {key: value for key, value in ROW.items() if key != "metric"}))
    with pytest.raises(CorpusError, match="missing"):
        read_questions(tmp_path / "missing.parquet")


def test_buckets_end_at_powers_of_two():
    assert [bucket_of(tokens) for tokens in (1024, 1025, 2048)] == ["512-1024", "1024-2048", "1024-2048"]
