"""Steps that prepare data: make the tokenizer, and turn each corpus into tokens."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from seerbench.data.corpora import TextSource
from seerbench.data.texts import read_texts, union_of
from seerbench.data.tokens import load_tokenizer, tokenize, train_tokenizer
from seerbench.presets.preset import Preset


def make_tokenizer(preset: Preset) -> None:
    """Train the preset's tokenizer on the train split of a corpus, or fetch the one that the preset names."""
    job = preset.tokenizer()
    if job.source is not None:
        load_tokenizer(job.source.location, job.source.revision).save_pretrained(job.out)
        return
    texts = _texts(job.texts, job.is_union)
    train_tokenizer(texts[texts.split == "train"].text.tolist(), job.vocab, job.out)


def make_corpus(preset: Preset, name: str) -> None:
    """Turn the texts of one corpus into tokens."""
    job = preset.corpus(name)
    tokenizer = load_tokenizer(job.tokenizer.location, job.tokenizer.revision)
    tokenize(_texts(job.texts, job.is_union), tokenizer, job.out, name=name, source=job.card)


def _texts(sources: Mapping[str, TextSource], is_union: bool) -> pd.DataFrame:
    """Return the documents of a corpus: columns id, text and split."""
    frames = {name: read_texts(source) for name, source in sources.items()}
    return union_of(frames) if is_union else next(iter(frames.values()))
