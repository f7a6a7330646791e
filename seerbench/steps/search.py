"""Steps that search MoA's plans and MInference's patterns of a model, before either method runs in it."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from seerbench.baselines.minference.patterns import save_patterns
from seerbench.baselines.moa import save_plan
from seerbench.data.lookup_tasks import TASKS
from seerbench.data.tokens import bos_and_eos, load_tokenizer, read_tokens
from seerbench.data.windows import evaluation_windows
from seerbench.presets.preset import Preset
from seerbench.search import minference, moa
from seerbench.steps.common import load_model, require
from seerbench.writing import atomically


def profile_model(preset: Preset, name: str) -> None:
    """Search MoA's plans of a model, one for each budget that the preset asks for."""
    job = preset.profile(name)
    require(preset, [job.tokens.file, *job.model.files], job.plans.values())
    model = load_model(job.model, job.setup, job.tokens)
    longest = job.context
    # The first documents are profiled; the plans are validated on the next ones that are long enough.
    text = read_tokens(job.tokens.file, job.split)
    bos, _ = bos_and_eos(model.config)
    reach = min(int(moa.VALIDATION * longest), model.config.max_position_embeddings)

    def windows(documents: Mapping[str, np.ndarray], context: int) -> dict[str, np.ndarray]:
        return evaluation_windows(documents, context, job.documents, longest=max(context, longest), bos=bos)

    profiled = {length: windows(text, length) for length in moa.moa_lengths(longest)}
    rest = {document: tokens for document, tokens in text.items() if document not in profiled[longest]}
    plans = moa.moa_plans(
        model,
        {length: list(found.values()) for length, found in profiled.items()},
        list(windows(rest, reach).values()),
        list(job.plans),
        job.setup.block,
    )
    facts = {"model": name, "corpus": job.tokens.corpus, "documents": len(profiled[longest])}
    for budget, plan in plans.items():
        provenance = facts | plan.provenance
        save = functools.partial(save_plan, alphas=plan.alphas, betas=plan.betas, provenance=provenance)
        atomically(job.plans[budget], save)


def search_patterns(preset: Preset, name: str) -> None:
    """Search MInference's patterns of a model's heads on one key-value look-up (upstream's is InfiniteBench's)."""
    job = preset.patterns(name)
    require(preset, [job.tokens.file, *job.tokenizer.files, *job.model.files], [job.out])
    model = load_model(job.model, job.setup, job.tokens)
    documents = read_tokens(job.tokens.file, job.split)
    tokenizer = load_tokenizer(job.tokenizer.location, job.tokenizer.revision)
    example = TASKS["kv"](documents, tokenizer, job.context, 1, job.setup.seed)[0]
    found = minference.minference_patterns(model, example.tokens, job.setup.block)
    atomically(job.out, lambda part: save_patterns(part, found))
