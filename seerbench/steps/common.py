"""The steps of the DAG: each reads files of a preset's run, calls one module, writes rows or a model.

`cli.py` gives each a sub-command and the rules call those; nothing here is reached in another way.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from typing import Any

from seerbench.data import tokens as data_tokens
from seerbench.data import windows as data_windows
from seerbench.models import random_weights, sources
from seerbench.presets.preset import Preset
from seerbench.rows.provenance import finish, provenance
from seerbench.rows.store import write_rows
from seerbench.steps.data import _tokenizer


def start(preset: Preset, step: str, corpus_name: str | None = None, split: str | None = None) -> dict[str, Any]:
    """Provenance of a step, with the corpus' hash and the split that the step reads."""
    sha256 = None
    if corpus_name is not None:
        sha256 = json.loads(preset.tokens(corpus_name).with_suffix(".json").read_text())["sha256"]
    config = preset.config
    return provenance(
        step,
        preset=preset.name,
        scale=config["scale"],
        seed=config["seed"],
        device=config["device"],
        corpus=corpus_name,
        corpus_sha256=sha256,
        corpus_split=split,
    )


def save(preset: Preset, table: str, part: str, rows: Iterable[Mapping[str, Any]], run: dict[str, Any]) -> None:
    """Write rows of one execution, each with its run_id."""
    done = finish(run)
    write_rows(preset.rows(table, part), table, [{**row, "run_id": done["run_id"]} for row in rows], done)


def _model(preset: Preset, name: str, corpus_name: str | None = None) -> Any:
    """A model; one that was not trained here is refused tokens that its tokenizer did not make."""
    about, config = preset.config["models"].get(name, {}), preset.config
    if preset.is_random(name):
        return random_weights.random_model(about["random"], config["device"], config["dtype"], config["seed"])
    if "source" in about and corpus_name is not None:
        data_tokens.require_vocabulary(preset.tokens(corpus_name), _tokenizer(preset, name), name)
    return sources.load(
        preset.model(name), config["device"], config["dtype"], about.get("revision"), about.get("yarn")
    )


def _windows(
    preset: Preset,
    corpus_name: str,
    context: int,
    documents: int | None,
    model: Any,
    split: str = "test",
    longest: int | None = None,
    aligned: bool = False,
    reaching: int | None = None,
) -> dict[str, Any]:
    """`corpus.evaluation_windows`; `aligned` ones are the last tokens of the longest window, BOS first."""
    tokens = data_tokens.read_tokens(preset.tokens(corpus_name), split)
    bos = model.config.bos_token_id
    longest = longest or context
    cut = functools.partial(
        data_windows.evaluation_windows, tokens, documents=documents, longest=longest, bos=bos, reaching=reaching
    )
    if not aligned:
        return cut(context)
    whole = cut(longest)
    return {name: data_windows.with_bos(window[longest - context + 1 :], bos) for name, window in whole.items()}
