"""Test LongBench-E: scores of all 13 tasks worked out by hand, its authors' prompts, and errors on bad input."""

import json
import sys
import zipfile

import pytest

from seerbench.data import longbench
from seerbench.data.longbench import Question, score
from seerbench.errors import CorpusError


def question_of(task, answers, classes=(), words=100, context="some text", question="what?"):
    return Question(task, 0, {"input": question, "context": context}, answers, classes, words)


QUESTION_TYPES = ["Abbreviation", "City", "Other location", "Individual", "Date", "Other number"]


@pytest.mark.parametrize(
    ("task", "answers", "prediction", "expected"),
    [
        # F1 ignores case, articles and punctuation: {old, bridge} against {bridge} gives 2 * 1 / 3.
        ("qasper", ["Bridge"], "The old bridge.", 2 / 3),
        # The best of several answers counts: 2 of 2 words.
        ("multifieldqa_en", ["in 1912", "a fire"], "Fire", 1.0),
        # {new, york, city} against {new, york}: 2 * 2 / 5.
        ("hotpotqa", ["New York"], "New York City", 4 / 5),
        # A repeated word counts as often as it occurs in both answers: {no, no} against {no} gives 2 * 1 / 3.
        ("2wikimqa", ["no"], "No, no.", 2 / 3),
        # ROUGE-L takes the union of common subsequences over sentences: "the tax rose" is all 3 words of the answer
        # and 3 of the 4 words of the prediction, so F is 2 * 1 * (3/4) / (7/4).
        ("gov_report", ["the tax rose"], "the tax rose sharply", 6 / 7),
        # Each word of the reference is in one of the two sentences, so precision and recall are 4/4.
        ("multi_news", ["rain fell. wind blew."], "wind blew. rain fell.", 1.0),
        # The prediction names two classes, one of them right, which gives 1/2. Only its first line counts.
        ("trec", ["City"], "\nCity or Date\nIndividual", 1 / 2),
        # Only the first line counts: {paris} against {paris}, whatever follows.
        ("triviaqa", ["Paris"], "Paris\nPassage: Lyon", 1.0),
        # Only the first line counts: "ann meets bob" shares 2 of 3 words with "ann meets tom", in order, so
        # precision and recall are 2/3.
        ("samsum", ["ann meets tom"], "ann meets bob\nDialogue: ann", 2 / 3),
        # One of three numbers is right.
        ("passage_count", ["12"], "12 of 30, or 13", 1 / 3),
        # One of two numbers is right.
        ("passage_retrieval_en", ["Paragraph 7"], "Paragraph 7, not Paragraph 17", 1 / 2),
        # The comment is skipped; "ab" and "abcd" share 2 of 6 characters: 2 * 2 / 6 = 0.67 in whole percent.
        ("lcc", ["abcd"], "# next\nab", 0.67),
        # A fence and a C comment are skipped; the line is the wanted one.
        ("repobench-p", ["return x"], "```\n// so\nreturn x\nreturn y", 1.0),
    ],
)
def test_each_task_scores_what_was_worked_out_by_hand(task, answers, prediction, expected):
    assert score(question_of(task, answers, QUESTION_TYPES), prediction) == pytest.approx(expected, abs=1e-6)


def test_the_cases_cover_all_thirteen_tasks():
    mark = test_each_task_scores_what_was_worked_out_by_hand.pytestmark[0]
    assert [case[0] for case in mark.args[1]] == list(longbench.TASKS)
    assert len(longbench.TASKS) == 13


@pytest.mark.parametrize("task", longbench.TASKS)
def test_an_empty_answer_scores_nothing(task):
    answer = {"passage_count": "12", "passage_retrieval_en": "Paragraph 7", "trec": "City"}.get(
        task, "a right answer"
    )
    assert score(question_of(task, [answer], QUESTION_TYPES), "") == 0.0
    assert score(question_of(task, [answer], QUESTION_TYPES), answer) == pytest.approx(1.0)


def test_a_class_inside_the_right_class_is_no_other_answer():
    classes = ["number", "Other number", "Date"]
    assert score(question_of("trec", ["Other number"], classes), "Other number") == 1.0
    assert score(question_of("trec", ["Date"], classes), "Other number") == 0.0
    # The official scorer skips the class after a removed one, so "Other" is kept and halves the score.
    assert score(question_of("trec", ["Other number"], ["number", "Other", "Other number"]), "Other number") == 0.5


def test_a_sentence_too_long_for_the_rouge_package_scores_nothing():
    long = " ".join(f"w{number}" for number in range(1100))
    before = sys.getrecursionlimit()
    try:
        for limit in (1000, 5000):  # Scores may not depend on the limit, which torch.compile raises.
            sys.setrecursionlimit(limit)
            assert score(question_of("gov_report", [long]), long) == 0.0
            assert sys.getrecursionlimit() == limit
    finally:
        sys.setrecursionlimit(before)


def test_buckets_are_the_data_sets_words():
    assert [question_of("lcc", [], words=n).bucket for n in (0, 3999, 4000, 7999, 8000, 50_000)] == [
        "0-4k",
        "0-4k",
        "4-8k",
        "4-8k",
        "8k+",
        "8k+",
    ]


def line(**changes):
    row = {"input": "q", "context": "c\u2028d", "answers": ["a"], "length": 10, "all_classes": None}
    return json.dumps(row | changes, ensure_ascii=False)


def test_questions_come_from_the_archive_or_from_files(tmp_path):
    rows = [line(), line(length=5000), line(input="another")]
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("data/lcc_e.jsonl", "\n".join(rows) + "\n")
    (tmp_path / "trec_e.jsonl").write_text(line(all_classes=["a", "b"]) + "\n")
    questions = longbench.read_examples(tmp_path, ["lcc", "trec"])
    assert [(question.task, question.number, question.bucket) for question in questions] == [
        ("lcc", 0, "0-4k"),
        ("lcc", 1, "4-8k"),
        ("lcc", 2, "0-4k"),
        ("trec", 0, "0-4k"),
    ]
    assert questions[0].fields["context"] == "c\u2028d"
    assert questions[3].classes == ["a", "b"]
    first = longbench.read_examples(tmp_path, ["lcc"], per_bucket=1)
    assert [question.number for question in first] == [0, 1]


def test_what_is_no_longbench_says_so(tmp_path):
    with pytest.raises(CorpusError, match=r"lcc_e\.jsonl"):
        longbench.read_examples(tmp_path, ["lcc"])
    with pytest.raises(CorpusError, match=r"narrativeqa.*qasper"):
        longbench.read_examples(tmp_path, ["narrativeqa"])
    (tmp_path / "lcc_e.jsonl").write_text(json.dumps({"input": "", "context": ""}) + "\n")
    with pytest.raises(CorpusError, match=r"line 1.*answers, length, all_classes"):
        longbench.read_examples(tmp_path, ["lcc"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("no json\n", "line 1: not JSON"),
        (line() + "\n\n" + line() + "\n", "line 2: not JSON"),
        ("[1]\n", "line 1: no field input, context"),
        (line(length="long") + "\n", "line 1: a field holds a value of another type"),
        (line(answers="a") + "\n", "line 1: a field holds a value of another type"),
        (line(answers=[1]) + "\n", "line 1: a field holds"),
        (line(context=None) + "\n", "line 1: a field holds"),
        ("version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
)
def test_a_line_that_holds_no_question_is_refused(tmp_path, content, words):
    (tmp_path / "lcc_e.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(CorpusError, match=words):
        longbench.read_examples(tmp_path, ["lcc"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "data.zip is empty"),
        (b"PK\x03\x04 cut", "data.zip is not readable"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
    ],
)
def test_a_damaged_archive_is_refused(tmp_path, content, words):
    (tmp_path / "data.zip").write_bytes(content)
    with pytest.raises(CorpusError, match=words):
        longbench.read_examples(tmp_path, ["lcc"])


def test_a_long_prompt_loses_its_middle_and_chat_tasks_get_a_turn(tmp_path):
    from standins import make_tokenizer

    from seerbench.data.tokens import load_tokenizer

    tokenizer = load_tokenizer(make_tokenizer(tmp_path / "t"))
    question = question_of("hotpotqa", ["a"], context="x " * 600, question="LAST WORDS")
    ids, cut = longbench.prompt_ids(question, tokenizer, 200)
    text = tokenizer.decode(ids)
    assert cut
    assert len(ids) < 320  # The chat template adds its own tokens.
    assert text.count("<|start_header_id|>") == 2
    assert "Answer the question based on" in text
    assert "LAST WORDS\nAnswer:" in text
    ids, cut = longbench.prompt_ids(question_of("lcc", ["a"], context="def f():\n"), tokenizer, 500)
    assert not cut
    assert tokenizer.decode(ids[1:]) == "Please complete the code given below. \ndef f():\nNext line of code:\n"
