import numpy as np
import pandas as pd
import pytest

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
    summary = tokenize(texts, tokenizer, folder / "tokens.parquet", name="toy", source={"kind": "toy"})
    return folder, tokenizer, summary
