"""Test texts: splits never share a document, each kind of corpus is read, and errors name what is missing."""

import gzip
import hashlib
import json
import os

import pandas as pd
import pytest
from huggingface_hub import constants
from pydantic import TypeAdapter

from seerbench.data.corpora import SPLITS, Corpus
from seerbench.data.texts import (
    STDLIB_SKIPPED_FOLDERS,
    checked_texts,
    hashed_split,
    origin,
    read_folder,
    read_texts,
    union_of,
)
from seerbench.errors import CorpusError


def read(source):
    """Return the documents of a source, given as in a preset."""
    return read_texts(corpus(source))


def corpus(source):
    """Return a source, given as in a preset, as its type."""
    return TypeAdapter(Corpus).validate_python(source)


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


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Stand for the hub: one data set with a train and a test file. Return the list of what was asked for."""
    folder, asked = tmp_path / "hub", []
    folder.mkdir()
    pd.DataFrame({"body": ["a", "b", "c", "in both"]}).to_parquet(folder / "train-0.parquet")
    (folder / "test.jsonl").write_text('{"body": "d"}\n{"body": "in both"}\n{"body": "too many"}\nno JSON\n')

    def fetch(name, *, repo_type, revision, allow_patterns):
        asked.append((name, repo_type, revision, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    return asked


def books(folder):
    """Return a corpus that is a file in the folder, or else a data set."""
    return {
        "kind": "parquet",
        "path": str(folder / "books.parquet"),
        "otherwise": {
            "name": "some/set",
            "revision": "abc",
            "text": "body",
            "train": {"files": ["train-*.parquet"]},
            "test": {"files": ["test.jsonl"], "documents": 2},
        },
    }


def test_a_data_set_takes_the_place_of_a_file_that_is_not_there(hub, tmp_path):
    found = read(books(tmp_path))
    assert hub == [("some/set", "dataset", "abc", ["train-*.parquet", "test.jsonl"])]
    assert found.set_index("id").split.to_dict() == {
        **{f"train-0.parquet/{row}": "train" for row in range(3)},  # the fourth is a text of the test split
        **{f"test.jsonl/{row}": "test" for row in range(2)},
    }
    assert origin(corpus(books(tmp_path))) == "some/set at abc"


def test_a_file_is_read_before_the_data_set_that_could_take_its_place(hub, texts, tmp_path):
    file = tmp_path / "books.parquet"
    texts.to_parquet(file)
    assert read(books(tmp_path)).id.tolist() == texts.id.tolist()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert origin(corpus(books(tmp_path))) == f"books.parquet with sha256 {digest}"
    file.unlink()
    file.symlink_to(tmp_path / "gone")  # a file that was meant to be there
    with pytest.raises(CorpusError, match=r"books\.parquet is a link to a file that does not exist"):
        read(books(tmp_path))
    assert hub == []


def test_without_file_and_data_set_one_line_says_how_to_get_either(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CorpusError) as error:
        read(books(tmp_path))
    said = str(error.value)
    assert "\n" not in said
    assert (
        f"{tmp_path}/books.parquet does not exist; put a parquet file with the columns id, text and split" in said
    )
    fetch = (
        "hf download --repo-type dataset some/set --revision abc --include 'train-*.parquet' --include 'test.jsonl'"
    )
    assert f"`{fetch} --local-dir DATA/some/set`" in said


def test_every_kind_of_corpus_says_where_it_is_from(tmp_path):
    assert origin(corpus({"kind": "stdlib"})).startswith("the standard library of Python 3.")
    assert origin(corpus({"kind": "folder", "path": "/data/poems"})) == "the folder poems"
    assert origin(corpus(PG19)) == "some/set at abc"
    assert origin(corpus({**PG19, "revision": None})) == "some/set at the newest revision"
    copy = tmp_path / "some" / "set"
    copy.mkdir(parents=True)
    assert origin(corpus({**PG19, "name": str(copy)})) == "a local copy of some/set"
    with pytest.raises(CorpusError, match="does not exist"):
        origin(corpus({"kind": "parquet", "path": str(tmp_path / "x.parquet")}))


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


def layout(root, files):
    """Write files (name -> text or bytes) below a folder and read it as a corpus: id -> split."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    frame = read_folder(str(root))
    return dict(zip(frame["id"], frame["split"], strict=True))


SPLIT = {"train/a.txt": "a", "test/b.txt": "b"}
TREE = {f"src/{place}/f{number}.py": f"x = {number}" for place in "ab" for number in range(40)}


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (SPLIT | {"README.md": "# about", "LICENSE.txt": "free"}, {"train/a.txt": "train", "test/b.txt": "test"}),
        (SPLIT | {"validation/deep/c.md": "c"}, {"validation/deep/c.md": "validation"}),
        ({f"data/{name}": text for name, text in SPLIT.items()} | {"README.md": ""}, {"data/train/a.txt": "train"}),
        ({"train.txt": "a", "test.txt": "b", "readme.md": "c"}, {"train.txt": "train", "test.txt": "test"}),
        (
            SPLIT | {"test/train/c.txt": "c", "train/test.txt": "d"},
            {"test/train/c.txt": "test", "train/test.txt": "train"},
        ),
        (
            SPLIT | {".cache/x.txt": "x", "train/.y.txt": "y", "._a.txt": "z", "train/a.json": "{}"},
            {"train/a.txt": "train"},
        ),
        (SPLIT | {"train/B.TXT": "upper case"}, {"train/B.TXT": "train"}),
    ],
)
def test_the_folders_of_a_data_set_are_splits(tmp_path, files, splits):
    found = layout(tmp_path, files)
    assert found.items() >= splits.items()
    assert {"train", "test"} <= set(found.values()) <= set(SPLITS)
    assert not any("readme" in name.lower() or "LICENSE" in name or "/." in f"/{name}" for name in found)


@pytest.mark.parametrize(
    "files",
    [
        TREE | {"test/t.py": "assert 1"},
        TREE | {"train/t.py": "fit()", "README.md": "about"},
        {name.removeprefix("src/"): text for name, text in TREE.items()},
        {name.replace("src/", "data/train/"): text for name, text in TREE.items()},
    ],
)
def test_any_other_folder_is_divided_by_a_hash(tmp_path, files):
    assert layout(tmp_path, files) == {name: hashed_split(name) for name in sorted(files)}
    assert set(read({"kind": "folder", "path": str(tmp_path)}).split) == set(SPLITS)


@pytest.mark.parametrize("extra", ["val/c.txt", "docs/guide.md", "extra.txt", "dev.txt", "Train/x.txt"])
def test_a_document_whose_split_is_open_is_refused(tmp_path, extra):
    with pytest.raises(CorpusError, match=f"the split of {extra} is open; move it"):
        layout(tmp_path, SPLIT | {extra: "c"})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("café".encode("latin-1"), "b.txt is not UTF-8 text .*; convert it"),
        ("text".encode("utf-16"), "b.txt is not UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n", "b.txt is not UTF-8 text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "b.txt is a Git LFS pointer"),
    ],
)
def test_a_file_that_is_no_text_is_refused_by_name(tmp_path, content, words):
    with pytest.raises(CorpusError, match=words):
        layout(tmp_path, SPLIT | {"test/b.txt": content})


def test_links_are_followed_once_and_empty_files_are_no_documents(tmp_path):
    root = tmp_path / "corpus"
    layout(tmp_path / "elsewhere", {"test/b.txt": "b", "test/empty.txt": ""})
    layout(root, {"train/a.txt": "a"})
    (root / "test").symlink_to(tmp_path / "elsewhere" / "test")
    (root / "train" / "loop").symlink_to(root)
    (tmp_path / "elsewhere" / "test" / "back").symlink_to(tmp_path / "elsewhere")
    frame = read({"kind": "folder", "path": str(root)})
    assert dict(zip(frame.id, frame.split, strict=True)) == {"test/b.txt": "test", "train/a.txt": "train"}
    (root / "train" / "lost.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CorpusError, match=r"lost\.txt is a link to a file that does not exist"):
        read_folder(str(root))


def test_a_name_that_is_not_utf_8_gets_a_readable_id(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("a", encoding="utf-8")
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    assert list(layout(tmp_path, {"b.txt": "b"})) == ["b.txt", "caf\\xe9.txt"]


def test_a_folder_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    layout(tmp_path, SPLIT)
    scan = os.scandir

    def refuse(path):
        if os.path.basename(path) == "train":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(CorpusError, match=r"train is not readable \(Permission denied\)"):
        read_folder(str(tmp_path))


HUB = {"kind": "hub", "files": ["*"], "split": "test"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "x.jsonl",
            b'{"text": "a"}\n\n{"txt": "b"}\n',
            r"x.jsonl, line 3: no column 'text'; set corpus.text to one of: txt",
        ),
        ("x.jsonl", b'{"text": "a"}\n["text"]\n', r"line 2: expected a JSON object"),
        ("x.jsonl", b'{"text": "a"}\n{"text": ', r"line 2: not JSON"),
        ("x.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("x.jsonl", b'{"text": "a"}\n{"text": 7}\n', "line 2: 'text' is no valid string"),
        ("x.jsonl", b'{"text": "\\ud800"}\n', "line 1: 'text' is no valid string"),
        ("x.jsonl", b'{"text": "caf\xe9"}\n', "x.jsonl is not UTF-8 text"),
        ("x.jsonl", b"", "the test split is empty"),
        ("x.jsonl.gz", b"no gzip", "x.jsonl.gz is not readable"),
        ("x.jsonl.gz", gzip.compress(b'{"text": "a"}', mtime=0)[:-6], "x.jsonl.gz is not readable"),
        ("x.parquet", b"PAR1PAR1", "x.parquet is not readable"),
        ("x.csv", b"text\na\n", "neither parquet nor"),
    ],
)
def test_a_damaged_or_foreign_file_of_a_data_set_is_refused(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=words):
        read({**HUB, "name": str(tmp_path)})


def test_files_outside_a_data_set_are_refused(tmp_path):
    with pytest.raises(CorpusError, match="names below the data set's folder, not /etc"):
        read({**HUB, "name": str(tmp_path), "files": ["/etc/*"]})


@pytest.mark.parametrize("column", ["id", "text", "split"])
def test_columns_of_other_types_are_refused_or_read(texts, tmp_path, column):
    texts.assign(**{column: range(len(texts))}).to_parquet(tmp_path / "x.parquet")
    if column == "id":
        assert read({"kind": "parquet", "path": str(tmp_path / "x.parquet")}).id.tolist() == [
            str(i) for i in range(12)
        ]
        return
    with pytest.raises(CorpusError, match="is no string" if column == "text" else "unknown split 0, 1"):
        read({"kind": "parquet", "path": str(tmp_path / "x.parquet")})
