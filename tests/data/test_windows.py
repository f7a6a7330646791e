"""Test windows: all contexts use the same documents, and packing is that of SeerAttention's authors."""

import numpy as np
import pytest

from seerbench.data.windows import evaluation_windows, packed, packed_rows, rows_of_step, training_windows
from seerbench.errors import CorpusError


def test_evaluation_windows_are_the_same_documents_at_every_context():
    tokens = {"short": np.arange(30), "a": np.arange(100, 200), "b": np.arange(300, 364), "c": np.arange(64)}
    for context in (16, 64):
        windows = evaluation_windows(tokens, context, 2, longest=64, bos=7)
        assert list(windows) == ["a", "b"]  # the first two that reach the longest context
        assert windows["b"].tolist() == [7, *range(300, 300 + context - 1)]
    assert list(evaluation_windows(tokens, 16, None, longest=64, bos=7)) == ["a", "b", "c"]


def test_a_context_that_no_document_reaches_is_refused():
    with pytest.raises(CorpusError, match="101 tokens"):
        evaluation_windows({"a": np.arange(100)}, 16, None, longest=101, bos=0)
    with pytest.raises(CorpusError, match="64 tokens"):
        evaluation_windows({"a": np.arange(100)}, 64, None, longest=32, bos=0)
    with pytest.raises(CorpusError, match="64 tokens"):
        training_windows(np.arange(50), 64, 1, np.random.default_rng(0), bos=0)


def test_documents_may_have_to_reach_further_than_the_longest_context():
    tokens = {"short": np.arange(20), "long": np.arange(40)}
    assert list(evaluation_windows(tokens, 8, None, longest=16, bos=1)) == ["short", "long"]
    assert list(evaluation_windows(tokens, 8, None, longest=16, bos=1, min_tokens=32)) == ["long"]


def test_training_windows_are_consecutive_and_reach_both_ends():
    stream = packed({"a": np.arange(10, 14), "b": np.arange(20, 23)}, eos=1)
    assert stream.tolist() == [10, 11, 12, 13, 1, 20, 21, 22, 1]
    windows = training_windows(stream, 5, 400, np.random.default_rng(0), bos=0)
    assert (windows[:, 0] == 0).all()
    possible = {tuple(stream[start : start + 4]) for start in range(6)}
    assert {tuple(window[1:]) for window in windows} == possible


def test_rows_are_packed_as_the_authors_pack_them():
    tokens = {"a": np.array([10, 11, 12]), "b": np.array([20]), "c": np.array([30, 31])}
    rows = packed_rows(tokens, 4, 2, bos=1, eos=2, pad=0)
    assert rows.tolist() == [[1, 10, 11, 12], [2, 20, 0, 0], [1, 30, 31, 0]]
    assert rows.dtype == np.int32
    steps = [rows_of_step(rows, step, 2, seed=7) for step in range(3)]
    drawn = np.concatenate(steps).tolist()
    assert sorted(drawn[:3]) == sorted(drawn[3:]) == sorted(rows.tolist())  # two epochs
    assert (rows_of_step(rows, 1, 2, seed=7) == steps[1]).all()


def test_packing_tokens_is_packing_text(tokenized, texts):
    """Check that tokenizing documents joined by the EOS string, as the authors do, gives the same tokens."""
    _, tokenizer, _ = tokenized
    plain = [text.replace("<eos>", "gamma") for text in texts.text[:3]]
    ids = {str(row): np.array(tokenizer.encode(text)) for row, text in enumerate(plain)}
    joined = tokenizer.encode("<eos>".join(plain))
    row = packed_rows(ids, len(joined) + 1, 1000, bos=0, eos=1, pad=2)
    assert row.tolist() == [[0, *joined]]
