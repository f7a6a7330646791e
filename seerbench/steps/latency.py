"""latency."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from seerbench.core.problem import AttentionProblem
from seerbench.data import tokens as data_tokens
from seerbench.data import windows as data_windows
from seerbench.measure import cells, sweeps
from seerbench.measure import inputs as measure_inputs
from seerbench.measure.arm import Arm
from seerbench.measure.sampler import Timing
from seerbench.methods import block_sparse_kernels
from seerbench.methods.registry import create
from seerbench.models import random_weights
from seerbench.presets.preset import PAPER_GATE, Preset, at_context, expand
from seerbench.steps.arms import make_arms, random_arms
from seerbench.steps.common import _model, save, start


def measure_latency(preset: Preset, sweep: str, contexts: Iterable[int]) -> None:
    """Timing jobs: a sweep, one context after the other, methods interleaved at each; a model is loaded once."""
    config, about = preset.config, preset.config["latency"]["sweeps"][sweep]
    corpus_name = about.get("corpus")
    model = _model(preset, about["model"], corpus_name) if "model" in about else None
    knobs = {"rounds", "min_rounds", "cap_s"}
    knobs = {name: value for name, value in {**config["latency"], **about}.items() if name in knobs}
    timing = Timing(**knobs, seed=config["seed"])
    for context in contexts:
        run = start(preset, f"latency {sweep} {context}", corpus_name, "test" if corpus_name else None)
        job = timing, run["run_id"]
        if model is None:
            found = _time_shape(preset, sweep, about, context, *job)
        else:
            found = _time_in_model(preset, sweep, about, context, model, *job)
        part = f"{sweep}-{context}"
        save(preset, "cells", part, found.cells, run)
        save(preset, "samples", part, found.samples, run)


def _time_in_model(
    preset: Preset, sweep: str, about: Mapping[str, Any], context: int, model: Any, timing: Timing, run_id: str
) -> cells.Rows:
    """The sweeps `methods` and `ttft` on a model, its weights real or random."""
    name, block = about["model"], preset.config["block"]
    arms = at_context(about["arms"], about["contexts"], context)
    if preset.is_random(name):
        inputs, tokens = f"{random_weights.INPUTS}:{name}", _random_tokens(preset, context, model)
        methods = random_arms(preset, arms, measure_inputs.problem_of_model(model, context, block), model=name)
    else:
        positions = model.config.max_position_embeddings
        beyond = f", beyond the {positions} tokens of its training" if context > positions else ""
        inputs, tokens = f"captured:{name}{beyond}", _timed_tokens(preset, about["corpus"], context, model)
        methods = make_arms(preset, name, expand(arms))
    named = _named(methods, block)
    if sweep == "ttft":
        return sweeps.ttft_sweep(model, inputs, tokens, named, timing, run_id, block, preset.is_random(name))
    attention = measure_inputs.capture(model, tokens, about.get("layer"))
    return sweeps.methods_sweep(inputs, attention, named, timing, run_id, block)


def _time_shape(
    preset: Preset, sweep: str, about: Mapping[str, Any], context: int, timing: Timing, run_id: str
) -> cells.Rows:
    """The sweeps that need no model: random inputs of the preset's shape."""
    config, shape = preset.config, preset.config["latency"]["shape"]
    heads = shape["q_heads"], shape["kv_heads"], shape["head_dim"]
    block = shape["block"]
    case = AttentionProblem(config["device"], config["dtype"], shape["batch"], *heads, context, block, block)
    if sweep == "kernel":
        return sweeps.kernel_sweep(
            case,
            about["sparsities"],
            timing,
            run_id,
            {
                name: block_sparse_kernels.sparse_kernel(name)
                for name in ["block_sparse", *about.get("kernels", [])]
            },
            {name: create(name) for name in about.get("dense", [])},
            about.get("blocks", [block]),
            about.get("masks", ["random"]),
        )
    if sweep == "methods":
        attention = measure_inputs.random_attention(case, config["seed"])
        methods = _named(random_arms(preset, at_context(about["arms"], about["contexts"], context), case), block)
        return sweeps.methods_sweep("random", attention, methods, timing, run_id, block)
    return sweeps.training_kernel_sweep(case, timing, run_id, config["latency"]["naive_limit_mib"])


def _timed_tokens(preset: Preset, corpus_name: str, context: int, model: Any) -> torch.Tensor:
    """[1, context] of held-out text, documents end to end: timing may need more than one document has."""
    documents = data_tokens.read_tokens(preset.tokens(corpus_name), "test")
    ends = model.config.eos_token_id  # several in the configs of chat models
    stream = data_windows.packed(documents, ends[0] if isinstance(ends, list) else ends)
    window = data_windows.training_windows(
        stream, context, 1, np.random.default_rng(0), bos=model.config.bos_token_id
    )
    return torch.from_numpy(window).long().to(preset.config["device"])


def _random_tokens(preset: Preset, context: int, model: Any) -> torch.Tensor:
    """[1, context] of the model's vocabulary: random weights read no text."""
    device = preset.config["device"]
    generator = torch.Generator(device).manual_seed(preset.config["seed"])
    return torch.randint(model.config.vocab_size, (1, context), generator=generator, device=device)


def _named(arms: Iterable[Arm], block: int) -> list[tuple[str, Any]]:
    """(name, method) for the timings: other patterns or blocks than the usual ones say so, as "seer-128".

    So does a gate set other than the paper's v1, as "seer-v2", where there are several in the sweep.
    """
    arms = list(arms)
    sets = [arm.gate.partition(":")[2] if arm.gate and arm.method.name.startswith("seer") else "" for arm in arms]
    several = len({name for name in sets if name}) > 1
    named = []
    for arm, gate_set in zip(arms, sets, strict=True):
        size = getattr(arm.method, "block", block)
        parts = [arm.method.name, getattr(arm.method, "variant", None)]
        if several and gate_set != PAPER_GATE:
            parts.append(gate_set)
        if (
            size != block and arm.method.name not in block_sparse_kernels.DENSE
        ):  # FlexAttention's own says nothing of dense
            parts.append(str(size))
        named.append(("-".join(filter(None, parts)), arm.method))
    return named
