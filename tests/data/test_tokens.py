"""Test tokens: they decode to their text, a card counts them, and files appear complete or not at all."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from transformers import AutoTokenizer

from seerbench.data.corpora import SPLITS
from seerbench.data.tokens import (
    load_tokenizer,
    read_card,
    read_tokens,
    require_embeddings,
    require_vocabulary,
    tokenize,
    train_tokenizer,
)
from seerbench.errors import CorpusError


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
        documents = read_tokens(folder / "tokens.parquet", split)
        expected = texts[texts["split"] == split]
        assert list(documents) == expected["id"].tolist()
        assert summary["documents"][split] == len(documents)
        assert summary["tokens"][split] == sum(map(len, documents.values()))
        for text, tokens in zip(expected["text"], documents.values(), strict=True):
            assert tokens.dtype == np.int32
            assert tokens.min() > 2  # "<eos>" in a text is no special token.
            assert tokenizer.decode(tokens.tolist()) == text
    assert json.loads((folder / "tokens.json").read_text()) == summary
    assert not list(folder.glob(".*"))


def test_hash_sees_every_field(texts, tokenized, tmp_path):
    _, tokenizer, summary = tokenized
    for column, value in (("id", "other"), ("text", "other"), ("split", "validation")):
        changed = texts.copy()
        changed.loc[0, column] = value
        again = tokenize(changed, tokenizer, tmp_path / "t.parquet", name="toy", source={}, read="toy")
        assert again["sha256"] != summary["sha256"], column


def test_interrupted_write_leaves_the_old_file(texts, tokenized, tmp_path):
    _, tokenizer, _ = tokenized
    out = tmp_path / "tokens.parquet"
    out.write_bytes(b"old")
    broken = texts.copy()
    broken.loc[5, "split"] = "nowhere"
    with pytest.raises(KeyError):
        tokenize(broken, tokenizer, out, name="toy", source={}, read="toy")
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_tokens_of_another_vocabulary_are_refused(tokenized):
    folder, tokenizer, _ = tokenized
    require_vocabulary(folder / "tokens.parquet", tokenizer, "same")
    other = train_tokenizer(["aaa bbb ccc " * 9], 262)
    with pytest.raises(CorpusError, match="tokenizer: tall"):
        require_vocabulary(folder / "tokens.parquet", other, "tall")


def test_a_file_that_holds_no_tokens_is_refused(texts, tmp_path):
    file = tmp_path / "x.parquet"
    with pytest.raises(CorpusError, match="seerbench corpus"):
        read_tokens(file, "train")
    texts.to_parquet(file)
    with pytest.raises(CorpusError, match="columns"):
        read_tokens(file, "train")
    file.write_bytes(b"PAR1 not really")
    with pytest.raises(CorpusError, match="readable"):
        read_tokens(file, "train")


def test_an_empty_split_is_refused(tokenized, texts, tmp_path):
    tokenize(texts[texts.split == "train"], tokenized[1], tmp_path / "t.parquet", name="toy", source={}, read="toy")
    with pytest.raises(CorpusError, match="test split"):
        read_tokens(tmp_path / "t.parquet", "test")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"{", "is not JSON"),
        (b"[]", "another kind"),
        (b"{}", "no entry 'name'"),
    ],
)
def test_a_damaged_card_is_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(CorpusError, match=f"t.json .*{words}.*seerbench corpus"):
        read_card(tmp_path / "t.parquet")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.99])
def test_a_cut_file_of_tokens_is_refused(tokenized, tmp_path, share):
    content = (tokenized[0] / "tokens.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(content[: int(share * len(content))])
    with pytest.raises(CorpusError, match=r"t\.parquet is .*; make it with"):
        read_tokens(tmp_path / "t.parquet", "train")


def test_tokens_of_another_type_are_refused(tmp_path):
    columns = {"id": ["a"], "split": ["train"], "tokens": ["text"]}
    pd.DataFrame(columns).to_parquet(tmp_path / "t.parquet", index=False)
    with pytest.raises(CorpusError, match="is not readable"):
        read_tokens(tmp_path / "t.parquet", "train")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("tokenizer.json", b"{", "is not JSON"),
        ("tokenizer.json", b"{}", "could not be loaded"),
        ("tokenizer.json", b'{"model": {"type": "nonesuch"}}', "could not be loaded"),
        ("tokenizer.json", b"[]", "another kind"),
        ("tokenizer_config.json", b"\xff", "is not UTF-8"),
        ("tokenizer_config.json", b'{"tokenizer_class": "PreTrainedTokenizerFast"}', "has no EOS token"),
    ],
)
def test_a_damaged_tokenizer_is_refused(tokenized, tmp_path, name, content, words):
    folder = shutil.copytree(tokenized[0] / "tokenizer", tmp_path / "tokenizer")
    (folder / name).write_bytes(content)
    with pytest.raises(CorpusError, match=words) as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_is_not_there_or_not_fast_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="could not be loaded"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}', encoding="utf-8")
    with pytest.raises(CorpusError, match=r"has no tokenizer.json"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_of_a_larger_model_is_refused(tokenized):
    require_embeddings(tokenized[1], 300, "own")
    with pytest.raises(CorpusError, match=r"tokens up to id \d+, and the model embeds 200 tokens"):
        require_embeddings(tokenized[1], 200, "small")
