"""data."""

from __future__ import annotations

from typing import Any

import pandas as pd

from seerbench.data import texts
from seerbench.data import tokens as data_tokens
from seerbench.presets.preset import Preset


def make_corpora(preset: Preset) -> None:
    """Tokenizer (trained, or fetched) and every corpus, tokenised; one corpus' texts in memory at a time."""
    about = preset.config["tokenizer"]
    if "source" in about:
        tokenizer = data_tokens.load_tokenizer(preset.local(about["source"]), about.get("revision"))
        tokenizer.save_pretrained(preset.tokenizer)
    else:
        frame = _texts(preset, about["corpus"])
        training = frame[frame.split == "train"].text.tolist()
        tokenizer = data_tokens.train_tokenizer(training, about["vocab"], preset.tokenizer)
    for name, source in preset.config["corpora"].items():
        own = _tokenizer(preset, source["tokenizer"]) if "tokenizer" in source else tokenizer
        data_tokens.tokenise(_texts(preset, name), own, preset.tokens(name), name=name, source=source)


def _texts(preset: Preset, name: str) -> pd.DataFrame:
    """The documents of a corpus, its path or data set looked for in the data folder first."""
    source = {key: value for key, value in preset.config["corpora"][name].items() if key != "tokenizer"}
    if source["kind"] == "union":
        return texts.union_of({part: _texts(preset, part) for part in source["of"]})
    if "path" in source:
        source["path"] = str(preset.data(source["path"]))
    if "name" in source:
        source["name"] = str(preset.local(source["name"]))
    return texts.read_texts(source)


def _tokenizer(preset: Preset, model: str) -> Any:
    """A model's own tokenizer."""
    return data_tokens.load_tokenizer(preset.model(model), preset.config["models"].get(model, {}).get("revision"))
