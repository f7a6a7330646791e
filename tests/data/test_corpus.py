"""Corpora: splits that never mix, tokens that round trip, windows as the paper cuts them, clear refusals."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import constants
from pydantic import TypeAdapter
from transformers import AutoTokenizer

from seerbench.data import texts as data_texts
from seerbench.data import tokens as data_tokens
from seerbench.data import windows as data_windows
from seerbench.data.corpora import SPLITS, Corpus
from seerbench.errors import CorpusError


def read(source):
    """The texts of a source as a preset writes it."""
    return data_texts.read_texts(TypeAdapter(Corpus).validate_python(source))


@pytest.fixture(scope="module")
def texts():
    known = ["alpha", "beta", "gamma", "delta", "12", "if", "<eos>"]
    words = np.random.default_rng(0).choice(known, (12, 400))
    frame = pd.DataFrame({"id": [f"d{row}" for row in range(12)], "text": [" ".join(row) for row in words]})
    frame["split"] = ["train"] * 8 + ["validation"] + ["test"] * 3
    return frame


@pytest.fixture(scope="module")
def tokenized(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    train = texts[texts["split"] == "train"]["text"].tolist()
    tokenizer = data_tokens.train_tokenizer(train, 300, folder / "tokenizer")
    summary = data_tokens.tokenize(texts, tokenizer, folder / "tokens.parquet", name="toy", source={"kind": "toy"})
    return folder, tokenizer, summary


@pytest.fixture(scope="module")
def stdlib():
    return read({"kind": "stdlib"})


def test_stdlib_is_deterministic_and_its_splits_share_no_text(stdlib):
    first, second = stdlib, read({"kind": "stdlib"})
    pd.testing.assert_frame_equal(first, second)
    assert first["id"].is_unique
    assert first["text"].is_unique  # a text under two ids could stand in two splits
    assert set(first["split"]) == set(SPLITS)
    folders = {part for name in first["id"] for part in name.split("/")[:-1]}
    assert not folders & data_texts.STDLIB_SKIPPED_FOLDERS
    assert (first["split"] == first["id"].map(data_texts.hashed_split)).all()


def test_stdlib_folders_join_files(stdlib):
    folders = read({"kind": "stdlib", "documents": "folder"}).set_index("id")
    assert len(folders) < len(stdlib)
    assert "# json/decoder.py" in folders.loc["json", "text"]
    assert "# json/encoder.py" in folders.loc["json", "text"]


def test_a_text_in_two_splits_is_dropped_from_train(texts):
    doubled = texts.copy()
    doubled.loc[0, "text"] = doubled.loc[11, "text"]  # a train document that repeats a test document
    kept = data_texts.checked_texts(doubled, "toy")
    assert "d11" in set(kept["id"])
    assert "d0" not in set(kept["id"])


def test_tokenizer_round_trips_and_splits_digits(tokenized):
    folder, tokenizer, _ = tokenized
    loaded = AutoTokenizer.from_pretrained(folder / "tokenizer")
    text = "alpha 41729\n\tπ = 3"
    assert loaded.decode(loaded.encode(text)) == text
    assert loaded.encode(text) == tokenizer.encode(text)
    digits = [token for token in tokenizer.tokenize("41729") if token.isdigit()]
    assert digits == list("41729")
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (0, 1, 2)


def test_tokens_round_trip_and_are_counted(texts, tokenized):
    folder, tokenizer, summary = tokenized
    for split in SPLITS:
        documents = data_tokens.read_tokens(folder / "tokens.parquet", split)
        expected = texts[texts["split"] == split]
        assert list(documents) == expected["id"].tolist()
        assert summary["documents"][split] == len(documents)
        assert summary["tokens"][split] == sum(map(len, documents.values()))
        for text, tokens in zip(expected["text"], documents.values(), strict=True):
            assert tokens.dtype == np.int32
            assert tokens.min() > 2  # "<eos>" in a text is text
            assert tokenizer.decode(tokens.tolist()) == text
    assert json.loads((folder / "tokens.json").read_text()) == summary
    assert not list(folder.glob("*.tmp"))


def test_hash_sees_every_field(texts, tokenized, tmp_path):
    _, tokenizer, summary = tokenized
    for column, value in (("id", "other"), ("text", "other"), ("split", "validation")):
        changed = texts.copy()
        changed.loc[0, column] = value
        again = data_tokens.tokenize(changed, tokenizer, tmp_path / "t.parquet", name="toy", source={})
        assert again["sha256"] != summary["sha256"], column


def test_interrupted_write_leaves_the_old_file(texts, tokenized, tmp_path):
    _, tokenizer, _ = tokenized
    out = tmp_path / "tokens.parquet"
    out.write_bytes(b"old")
    broken = texts.copy()
    broken.loc[5, "split"] = "nowhere"
    with pytest.raises(KeyError):
        data_tokens.tokenize(broken, tokenizer, out, name="toy", source={})
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_evaluation_windows_are_the_same_documents_at_every_context():
    tokens = {"short": np.arange(30), "a": np.arange(100, 200), "b": np.arange(300, 364), "c": np.arange(64)}
    for context in (16, 64):
        windows = data_windows.evaluation_windows(tokens, context, 2, longest=64, bos=7)
        assert list(windows) == ["a", "b"]  # the first two that reach the longest context
        assert windows["b"].tolist() == [7, *range(300, 300 + context - 1)]
    assert list(data_windows.evaluation_windows(tokens, 16, None, longest=64, bos=7)) == ["a", "b", "c"]


def test_a_context_that_no_document_reaches_is_refused():
    with pytest.raises(CorpusError, match="no document reaches a context of 101 tokens: the longest has 100"):
        data_windows.evaluation_windows({"a": np.arange(100)}, 16, None, longest=101, bos=0)
    with pytest.raises(CorpusError, match="longer than the longest"):
        data_windows.evaluation_windows({"a": np.arange(100)}, 64, None, longest=32, bos=0)
    with pytest.raises(CorpusError, match="no document reaches a context of 64"):
        data_windows.training_windows(np.arange(50), 64, 1, np.random.default_rng(0), bos=0)


def test_training_windows_are_consecutive_and_reach_both_ends():
    stream = data_windows.packed({"a": np.arange(10, 14), "b": np.arange(20, 23)}, eos=1)
    assert stream.tolist() == [10, 11, 12, 13, 1, 20, 21, 22, 1]
    windows = data_windows.training_windows(stream, 5, 400, np.random.default_rng(0), bos=0)
    assert (windows[:, 0] == 0).all()
    possible = {tuple(stream[start : start + 4]) for start in range(6)}
    assert {tuple(window[1:]) for window in windows} == possible


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"kind": "parquet", "path": "/nowhere/x.parquet"}, "corpus file /nowhere/x.parquet does not exist"),
        ({"kind": "folder", "path": "/nowhere"}, "corpus folder /nowhere does not exist"),
    ],
)
def test_missing_data_is_refused(source, message):
    with pytest.raises(CorpusError, match=message):
        read(source)


def test_bad_parquet_is_refused(texts, tmp_path):
    file = tmp_path / "x.parquet"
    texts.rename(columns={"text": "body"}).to_parquet(file)
    with pytest.raises(CorpusError, match=r"no column text; expected id, text, split, found id, body, split"):
        read({"kind": "parquet", "path": str(file)})
    texts[texts["split"] == "train"].to_parquet(file)
    with pytest.raises(CorpusError, match="the test split is empty"):
        read({"kind": "parquet", "path": str(file)})
    file.write_bytes(b"PAR1 not really")
    with pytest.raises(CorpusError, match="not a readable parquet"):
        read({"kind": "parquet", "path": str(file)})
    with pytest.raises(CorpusError, match="not a readable tokens file"):
        data_tokens.read_tokens(file, "train")


def test_parquet_and_folder_give_the_same_documents(texts, tmp_path):
    file = tmp_path / "x.parquet"
    texts.to_parquet(file)
    from_parquet = read({"kind": "parquet", "path": str(file)})
    for row in texts.itertuples():
        path = tmp_path / "texts" / row.split / f"{row.id}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(row.text)
    from_folder = read({"kind": "folder", "path": str(tmp_path / "texts")})
    assert set(zip(from_folder["text"], from_folder["split"], strict=True)) == set(
        zip(from_parquet["text"], from_parquet["split"], strict=True)
    )


PG19 = {"kind": "hub", "name": "some/set", "revision": "abc", "files": ["data/test-*.parquet"], "split": "test"}


def test_a_data_set_of_the_hub_offline_says_what_to_type(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = (
        r"hf download --repo-type dataset some/set --revision abc --include 'data/test-\*\.parquet' --local-dir"
    )
    with pytest.raises(CorpusError, match=f"not in the local cache and HF_HUB_OFFLINE=1.*{command}"):
        read(PG19)


def test_files_of_a_data_set_are_read_as_they_are(tmp_path):
    """The schemas of PG19's test set, Proof-pile and RedPajama's sample."""
    (tmp_path / "data").mkdir()
    pd.DataFrame({"short_book_title": ["A", "B"], "text": ["first", "second"]}).to_parquet(
        tmp_path / "data" / "test-00000-of-00001.parquet"
    )
    pg19 = read({**PG19, "name": str(tmp_path)})
    assert pg19.text.tolist() == ["first", "second"]
    assert set(pg19.split) == {"test"}

    (tmp_path / "test").mkdir()
    with gzip.open(tmp_path / "test" / "proofpile_test.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"text": "lemma \u2028 proof", "meta": {"config": "arxiv"}}\n')
    files = ["test/proofpile_test.jsonl.gz"]
    proofs = read({"kind": "hub", "name": str(tmp_path), "files": files, "split": "test"})
    assert proofs.text.tolist() == ["lemma \u2028 proof"]

    for name in ("arxiv", "book", "c4"):
        lines = [json.dumps({"text": f"{name} {row}", "meta": {}}) for row in range(2)]
        (tmp_path / f"{name}_sample.jsonl").write_text("\n".join(lines) + "\n")
    sample = {"kind": "hub", "name": str(tmp_path), "files": ["*_sample.jsonl"], "split": "train"}
    assert read(sample).text.tolist() == [f"{n} {r}" for n in ("arxiv", "book", "c4") for r in (0, 1)]
    assert read({**sample, "documents": 3}).id.tolist()[-1] == "book_sample.jsonl/0"
    with pytest.raises(CorpusError, match=r"has no column 'body'; set corpus\.text to one of: text, meta"):
        read({**sample, "text": "body"})
    with pytest.raises(CorpusError, match=r"holds no x\.parquet"):
        read({**sample, "files": ["x.parquet"]})


def test_rows_are_packed_as_the_authors_pack_them():
    tokens = {"a": np.array([10, 11, 12]), "b": np.array([20]), "c": np.array([30, 31])}
    rows = data_windows.packed_rows(tokens, 4, 2, bos=1, eos=2, pad=0)
    assert rows.tolist() == [[1, 10, 11, 12], [2, 20, 0, 0], [1, 30, 31, 0]]
    assert rows.dtype == np.int32
    steps = [data_windows.rows_of_step(rows, step, 2, seed=7) for step in range(3)]
    drawn = np.concatenate(steps).tolist()
    assert sorted(drawn[:3]) == sorted(drawn[3:]) == sorted(rows.tolist())  # two epochs
    assert (data_windows.rows_of_step(rows, 1, 2, seed=7) == steps[1]).all()


def test_packing_tokens_is_packing_text(tokenized, texts):
    """The authors tokenize documents joined by the EOS string; where EOS is a token, that is the same."""
    _, tokenizer, _ = tokenized
    plain = [text.replace("<eos>", "gamma") for text in texts.text[:3]]
    ids = {str(row): np.array(tokenizer.encode(text)) for row, text in enumerate(plain)}
    joined = tokenizer.encode("<eos>".join(plain))
    row = data_windows.packed_rows(ids, len(joined) + 1, 1000, bos=0, eos=1, pad=2)
    assert row.tolist() == [[0, *joined]]


def test_tokens_of_another_vocabulary_are_refused(tokenized):
    folder, tokenizer, _ = tokenized
    data_tokens.require_vocabulary(folder / "tokens.parquet", tokenizer, "same")
    other = data_tokens.train_tokenizer(["aaa bbb ccc " * 9], 262)
    with pytest.raises(CorpusError, match="give that model a corpus with `tokenizer: tall`"):
        data_tokens.require_vocabulary(folder / "tokens.parquet", other, "tall")


def test_documents_may_have_to_reach_further_than_the_longest_context():
    tokens = {"short": np.arange(20), "long": np.arange(40)}
    assert list(data_windows.evaluation_windows(tokens, 8, None, longest=16, bos=1)) == ["short", "long"]
    assert list(data_windows.evaluation_windows(tokens, 8, None, longest=16, bos=1, reaching=32)) == ["long"]


def test_a_union_keeps_each_split_and_no_test_text_in_training():
    """A text that is train in one corpus and test in the other may only be tested."""
    first = pd.DataFrame({"id": ["1", "2"], "text": ["only here", "in both"], "split": ["train", "train"]})
    second = pd.DataFrame({"id": ["1", "2"], "text": ["in both", "there"], "split": ["test", "train"]})
    union = data_texts.union_of({"books": first, "math": second})
    assert union.set_index("id").split.to_dict() == {"books/1": "train", "math/1": "test", "math/2": "train"}
