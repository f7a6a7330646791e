import numpy as np
import pandas as pd
import pytest

from seerbench.data.corpora import StdlibCorpus
from seerbench.data.texts import read_texts
from seerbench.data.tokens import tokenize, train_tokenizer


@pytest.fixture(scope="module")
def texts():
    """Return twelve documents of random words, eight of them in the train split."""
    known = ["alpha", "beta", "gamma", "delta", "12", "if", "<eos>"]
    words = np.random.default_rng(0).choice(known, (12, 400))
    frame = pd.DataFrame({"id": [f"d{row}" for row in range(12)], "text": [" ".join(row) for row in words]})
    frame["split"] = ["train"] * 8 + ["validation"] + ["test"] * 3
    return frame


@pytest.fixture(scope="module")
def tokenized(texts, tmp_path_factory):
    """Tokenize `texts`; return the folder of tokenizer and tokens, the tokenizer, and the card of the tokens."""
    folder = tmp_path_factory.mktemp("corpus")
    train = texts[texts["split"] == "train"]["text"].tolist()
    tokenizer = train_tokenizer(train, 300, folder / "tokenizer")
    summary = tokenize(texts, tokenizer, folder / "tokens.parquet", name="toy", source={"kind": "toy"}, read="toy")
    return folder, tokenizer, summary


@pytest.fixture(scope="session")
def setting():
    """Return a tokenizer and tokens of train and test documents, from a part of the standard library."""
    frame = read_texts(StdlibCorpus(kind="stdlib"))
    frame = frame[frame["text"].str.len().between(15_000, 60_000)]
    frame = pd.concat([part.head(25) for _, part in frame.groupby("split")])
    train = frame[frame["split"] == "train"]["text"].tolist()
    tokenizer = train_tokenizer(train, 1024)
    encode = tokenizer.backend_tokenizer.encode
    documents = {
        split: {row.id: np.array(encode(row.text).ids, np.int32) for row in part.itertuples()}
        for split, part in frame.groupby("split")
    }
    return tokenizer, documents
