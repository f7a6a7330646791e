"""Test the prompts of RULER's tasks: their sizes, their seeds, chat templates, names and question sets."""

import pandas as pd
import pytest
from standins import make_tokenizer

from seerbench.data.ruler.tasks import TASKS, make_prompts, name_in_rows
from seerbench.data.tokens import load_tokenizer
from seerbench.errors import CorpusError

ESSAY = ["It", "was", "a", "dark", "night.", "The", "rain", "fell", "in", "torrents!", "Who", "would", "go", "out?"]
ELEVEN = [name for name, task in TASKS.items() if not task.asks_documents]


def prompts(task, tokenizer, length=3000, count=3, seed=42, **options):
    return make_prompts(task, tokenizer, length, count, seed, corpus="pg19", essay=ESSAY, **options)


@pytest.mark.parametrize("task", ELEVEN)
def test_prompts_fill_their_length_and_never_exceed_it(task, tokenizer):
    found = prompts(task, tokenizer)
    assert len({prompt.ids.tobytes() for prompt in found}) == 3
    for prompt in found:
        room = prompt.context - prompt.new_tokens
        assert room == 3000 - {"vt": 30, "cwe": 120, "fwe": 50}.get(task, 128)
        assert 0.75 * room < len(prompt.ids) <= room
        text = tokenizer.decode(prompt.ids)
        assert all(reference in text for reference in prompt.references)
        if prompt.distance is not None:
            assert "One of the special" in tokenizer.decode(prompt.ids[-prompt.distance - 2 :])[:40]
    again = prompts(task, tokenizer, count=2)
    assert [prompt.ids.tolist() for prompt in again] == [prompt.ids.tolist() for prompt in found[:2]]
    assert prompts(task, tokenizer, count=1, seed=43)[0].references != found[0].references


def test_a_chat_template_is_around_the_question_and_counts(tmp_path):
    chat = load_tokenizer(make_tokenizer(tmp_path / "chat"))
    (prompt,) = prompts("niah_single_1", chat, length=2000, count=1)
    text = chat.decode(prompt.ids)
    assert len(prompt.ids) <= 2000 - 128
    assert text.startswith("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nA special magic number")
    assert text.count("<|begin_of_text|>") == 1
    assert "?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n The special magic number for" in text
    assert text.endswith(" mentioned in the provided text is")


def test_text_of_a_corpus_is_in_the_name_of_a_task():
    assert name_in_rows("niah_single_2", "pg19") == "niah_single_2-pg19"
    assert name_in_rows("niah_multikey_2", "pg19") == "niah_multikey_2"
    assert {task for task in TASKS if name_in_rows(task, "x") != task} == {
        "niah_single_2",
        "niah_single_3",
        "niah_multikey_1",
        "niah_multivalue",
        "niah_multiquery",
    }


def test_a_length_that_is_too_short_says_so(tokenizer):
    with pytest.raises(CorpusError, match=r"niah_multikey_3 does not fit into 200 tokens"):
        prompts("niah_multikey_3", tokenizer, length=200)


def test_questions_are_asked_about_their_own_and_other_documents(tokenizer, tmp_path):
    file = tmp_path / "qa_1.parquet"
    rows = [
        {
            "id": str(row),
            "context": f"Gold {row}\n\nNear {row}",
            "question": f"What is {row}?",
            "answers": [f"Gold {row}"],
        }
        for row in range(4)
    ]
    pd.DataFrame(rows).assign(metric="match_part").to_parquet(file)
    found = prompts("qa_1", tokenizer, count=9, question_set=file)
    assert len(found) == 4
    text = tokenizer.decode(found[2].ids)
    instruction = (
        "Answer the question based on the given documents. "
        "Only give me the answer and do not output any other words."
    )
    assert text.startswith(f"{instruction}\n\nThe following are given documents.\n\nDocument 1:\n")
    assert text.endswith(f"\n\n{instruction}\n\nQuestion: What is 2? Answer:")
    context = text.split("given documents.\n\n")[1].split(f"\n\n{instruction}")[0]
    documents = context.split("\n\n")
    assert [line.split(":\n")[0] for line in documents] == [f"Document {place}" for place in range(1, 9)]
    assert {line.split(":\n")[1] for line in documents} == {
        f"{kind} {n}" for kind in ("Gold", "Near") for n in range(4)
    }
    assert found[2].score("the gold 2!") == 1.0
    assert found[2].score("gold 1") == 0.0
    with pytest.raises(CorpusError, match="qa_2 needs a question set"):
        prompts("qa_2", tokenizer)
