"""Test texts: splits never share a document, each kind of corpus is read, and errors name what is missing."""

import gzip
import json

import pandas as pd
import pytest
from huggingface_hub import constants
from pydantic import TypeAdapter

from seerbench.data.corpora import SPLITS, Corpus
from seerbench.data.texts import STDLIB_SKIPPED_FOLDERS, checked_texts, hashed_split, read_texts, union_of
from seerbench.errors import CorpusError


def read(source):
    """Return the documents of a source, given as in a preset."""
    return read_texts(TypeAdapter(Corpus).validate_python(source))


@pytest.fixture(scope="module")
def stdlib():
    return read({"kind": "stdlib"})


def test_stdlib_is_deterministic_and_its_splits_share_no_text(stdlib):
    first, second = stdlib, read({"kind": "stdlib"})
    pd.testing.assert_frame_equal(first, second)
    assert first["id"].is_unique
    assert first["text"].is_unique  # a text under two ids could be in two splits
    assert set(first["split"]) == set(SPLITS)
    folders = {part for name in first["id"] for part in name.split("/")[:-1]}
    assert not folders & STDLIB_SKIPPED_FOLDERS
    assert (first["split"] == first["id"].map(hashed_split)).all()


def test_stdlib_folders_join_files(stdlib):
    folders = read({"kind": "stdlib", "documents": "folder"}).set_index("id")
    assert len(folders) < len(stdlib)
    assert "# json/decoder.py" in folders.loc["json", "text"]
    assert "# json/encoder.py" in folders.loc["json", "text"]


def test_a_text_in_two_splits_is_dropped_from_train(texts):
    doubled = texts.copy()
    doubled.loc[0, "text"] = doubled.loc[11, "text"]  # a train document that repeats a test document
    checked = checked_texts(doubled, "toy")
    assert "d11" in set(checked["id"])
    assert "d0" not in set(checked["id"])


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ({"kind": "parquet", "path": "/nowhere/x.parquet"}, "/nowhere/x.parquet"),
        ({"kind": "folder", "path": "/nowhere"}, "/nowhere"),
    ],
)
def test_missing_data_is_refused(source, path):
    with pytest.raises(CorpusError, match=path):
        read(source)


def test_bad_parquet_is_refused(texts, tmp_path):
    file = tmp_path / "x.parquet"
    texts.rename(columns={"text": "body"}).to_parquet(file)
    with pytest.raises(CorpusError, match="column text"):
        read({"kind": "parquet", "path": str(file)})
    texts[texts["split"] == "train"].to_parquet(file)
    with pytest.raises(CorpusError, match="test split"):
        read({"kind": "parquet", "path": str(file)})
    file.write_bytes(b"PAR1 not really")
    with pytest.raises(CorpusError, match="readable"):
        read({"kind": "parquet", "path": str(file)})


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
    command = r"hf download --repo-type dataset some/set --revision abc --include 'data/test-\*\.parquet'"
    with pytest.raises(CorpusError, match=f"HF_HUB_OFFLINE.*{command}"):
        read(PG19)


def test_files_of_a_data_set_are_read_as_they_are(tmp_path):
    """Read files with the schemas of PG19's test set, Proof-pile and RedPajama's sample."""
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
    with pytest.raises(CorpusError, match="text, meta"):
        read({**sample, "text": "body"})
    with pytest.raises(CorpusError, match=r"x\.parquet"):
        read({**sample, "files": ["x.parquet"]})


def test_a_union_keeps_each_split_and_no_test_text_in_training():
    """Check that a text in the train split of one corpus and the test split of another ends in the test split."""
    first = pd.DataFrame({"id": ["1", "2"], "text": ["only here", "in both"], "split": ["train", "train"]})
    second = pd.DataFrame({"id": ["1", "2"], "text": ["in both", "there"], "split": ["test", "train"]})
    union = union_of({"books": first, "math": second})
    assert union.set_index("id").split.to_dict() == {"books/1": "train", "math/1": "test", "math/2": "train"}
