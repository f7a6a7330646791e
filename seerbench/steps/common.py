"""Share between steps: provenance, rows, models and evaluation windows."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seerbench.data.tokens import (
    bos_and_eos,
    load_tokenizer,
    read_card,
    read_tokens,
    require_embeddings,
    require_vocabulary,
)
from seerbench.data.windows import evaluation_windows, with_bos
from seerbench.errors import MissingInput
from seerbench.models import sources
from seerbench.models.model_source import ModelSource
from seerbench.models.random_weights import random_model
from seerbench.presets.jobs import Setup, Tokens
from seerbench.presets.preset import Preset
from seerbench.rows.provenance import finish, provenance
from seerbench.rows.store import write_rows
from seerbench.writing import require_writable


def require(preset: Preset, inputs: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Check a step's files before its work.

    Raises MissingInput, which names the step to run first, for an input that does not exist, and OSError for an
    output that cannot be written.
    """
    for file in inputs:
        if not file.exists():
            step = preset.step_that_makes(file)
            first = f"run `{step}` first, or `make figures`, which runs all steps in order" if step else "add it"
            raise MissingInput(f"{file} does not exist; {first}")
    require_writable(*outputs)


def start(
    setup: Setup,
    step: str,
    tokens: Tokens | None = None,
    split: str | None = None,
    models: Iterable[ModelSource] = (),
) -> dict[str, Any]:
    """Return the provenance of a step: what runs, which text it reads, and where its models' weights come from.

    Args:
        setup: the settings that all jobs share.
        step: the words of its command line, without the preset: "latency kernel 8192".
        tokens: the corpus that it reads, if any.
        split: the split of it.
        models: the models that it runs.
    """
    name, *arguments = step.split()
    card = None if tokens is None else read_card(tokens.file)
    return provenance(
        step,
        command=shlex.join(["seerbench", name, setup.reference, *arguments]),
        preset=setup.preset,
        scale=setup.scale,
        scale_kind=setup.scale_kind,
        seed=setup.seed,
        device=setup.device,
        corpus=None if tokens is None else tokens.corpus,
        corpus_sha256=None if card is None else card.sha256,
        corpus_source=None if card is None else card.read,
        corpus_split=split,
        weights={model.name: model.origin() for model in models},
    )


def save(table: str, file: Path, rows: Iterable[Mapping[str, Any]], run: dict[str, Any]) -> None:
    """Write the rows of one execution, each with its run_id."""
    done = finish(run)
    write_rows(file, table, [{**row, "run_id": done["run_id"]} for row in rows], done)


def load_model(source: ModelSource, setup: Setup, tokens: Tokens | None = None) -> Any:
    """Load a model onto the preset's device.

    Raises CorpusError if `tokens` come from another tokenizer than the model's own, or if the model does not embed
    all of its tokenizer's tokens.
    """
    if source.geometry is not None:
        return random_model(source.geometry, setup.device, setup.dtype, setup.seed)
    model = sources.load(source.weights, setup.device, setup.dtype, source.revision, source.yarn)
    if tokens is not None:
        tokenizer = tokenizer_of(source)
        require_vocabulary(tokens.file, tokenizer, source.name)
        require_embeddings(tokenizer, model.config.vocab_size, source.name)
    return model


def tokenizer_of(source: ModelSource) -> Any:
    """Load a model's own tokenizer."""
    return load_tokenizer(source.weights, source.revision)


def windows_of(
    tokens: Tokens,
    context: int,
    documents: int | None,
    model: Any,
    longest: int | None = None,
    aligned: bool = False,
    reaching: int | None = None,
) -> dict[str, np.ndarray]:
    """Return `evaluation_windows` of the test split, by document.

    aligned: whether each window is BOS and the last tokens of the longest window; all contexts then end alike.
    """
    split = read_tokens(tokens.file, "test")
    bos, _ = bos_and_eos(model.config)
    longest = longest or context
    cut = functools.partial(
        evaluation_windows, split, documents=documents, longest=longest, bos=bos, min_tokens=reaching
    )
    if not aligned:
        return cut(context)
    return {name: with_bos(window[longest - context + 1 :], bos) for name, window in cut(longest).items()}
