"""Windows of several contexts end at the same token, which shows whether a model uses its context."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from seerbench.presets.jobs import Tokens
from seerbench.steps import common


def test_aligned_windows_end_alike_and_short_ones_hold_less(monkeypatch):
    tokens = {"long": np.arange(100, 200, dtype=np.int32), "short": np.arange(30, dtype=np.int32)}
    monkeypatch.setattr(common, "read_tokens", lambda file, split: tokens)
    toy = Tokens("toy", Path("tokens.parquet"))
    model = SimpleNamespace(config=SimpleNamespace(bos_token_id=1))
    few, many = (
        common.windows_of(toy, context, 4, model, longest=64, aligned=True)["long"] for context in (16, 64)
    )
    assert (len(few), len(many)) == (16, 64)
    assert few[0] == many[0] == 1
    assert (few[1:] == many[-15:]).all()
    plain = common.windows_of(toy, 16, 4, model, longest=64)["long"]
    assert (plain[1:] == tokens["long"][:15]).all()
