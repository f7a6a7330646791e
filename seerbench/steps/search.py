"""search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from seerbench.baselines.minference.patterns import save_patterns
from seerbench.baselines.moa import save_plan
from seerbench.data import tokens as data_tokens
from seerbench.data import windows as data_windows
from seerbench.measure import tasks
from seerbench.presets.preset import Preset
from seerbench.rows.store import atomically
from seerbench.search import minference, moa
from seerbench.steps.common import _model


def profile_model(preset: Preset, name: str) -> None:
    """MoA's plans of a model, one for each sparsity that the preset asks for."""
    about, block = preset.config["profile"], preset.config["block"]
    model = _model(preset, name, about["corpus"])
    documents, longest = about["documents"], about["context"]
    # The first documents are profiled; plans are compared on the next ones that are long enough.
    text = data_tokens.read_tokens(preset.tokens(about["corpus"]), about.get("split", "validation"))
    bos = model.config.bos_token_id
    reach = min(int(moa.VALIDATION * longest), model.config.max_position_embeddings)

    def windows(of: Mapping[str, Any], context: int) -> dict[str, np.ndarray]:
        return data_windows.evaluation_windows(of, context, documents, longest=max(context, longest), bos=bos)

    profiled = {length: windows(text, length) for length in moa.moa_lengths(longest)}
    rest = {document: tokens for document, tokens in text.items() if document not in profiled[longest]}
    plans = moa.moa_plans(
        model,
        {length: list(found.values()) for length, found in profiled.items()},
        list(windows(rest, reach).values()),
        preset.moa_sparsities() or [None],
        block,
    )
    facts = {"model": name, "corpus": about["corpus"], "documents": len(profiled[longest])}
    for sparsity, plan in plans.items():
        atomically(
            preset.moa_plan(name, sparsity),
            lambda part, plan=plan: save_plan(part, plan.alphas, plan.betas, facts | plan.about),
        )


def search_patterns(preset: Preset, name: str) -> None:
    """MInference's patterns of a model's heads, on one key-value look-up (upstream: one of InfiniteBench)."""
    about, config = preset.config["profile"], preset.config
    model = _model(preset, name, about["corpus"])
    documents = data_tokens.read_tokens(preset.tokens(about["corpus"]), about.get("split", "validation"))
    tokenizer = data_tokens.load_tokenizer(preset.tokenizer)
    example = tasks.TASKS["kv"](documents, tokenizer, about["context"], 1, config["seed"])[0]
    found = minference.minference_patterns(model, example.tokens, config["block"])
    atomically(preset.minference_patterns(name), lambda part: save_patterns(part, found))
