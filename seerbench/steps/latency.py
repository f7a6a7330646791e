"""Steps that time: one sweep at one context, all methods interleaved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import torch

from seerbench.core.problem import AttentionProblem
from seerbench.data.tokens import bos_and_eos, read_tokens
from seerbench.data.windows import packed, training_windows
from seerbench.measure import inputs, sweeps
from seerbench.measure.arm import Arm
from seerbench.measure.cells import Rows
from seerbench.measure.sampler import Timing
from seerbench.methods.block_sparse_kernels import DENSE, sparse_kernel
from seerbench.methods.registry import create
from seerbench.presets.jobs import (
    AuthorsKernelLatencyJob,
    DecodeLatencyJob,
    FirstTokenLatencyJob,
    KernelLatencyJob,
    LatencyJob,
    MethodsLatencyJob,
    ModelArms,
    RandomMethodsLatencyJob,
    Rounds,
    Setup,
    Tokens,
    TrainingKernelLatencyJob,
)
from seerbench.presets.preset import Preset
from seerbench.presets.types import Shape
from seerbench.rows.gate_ref import PAPER_GATE
from seerbench.steps.arms import make_arms, random_arms
from seerbench.steps.common import load_model, require, save, start


def measure_latency(preset: Preset, sweep: str, contexts: Iterable[int]) -> None:
    """Time a sweep at each context, all methods interleaved; a model is loaded once for all contexts."""
    model = None
    for context in contexts:
        job = preset.latency(sweep, context)
        require(preset, [*job.token_files, *job.arm_files], [job.cells, job.samples])
        if model is None and job.groups:
            model = load_model(job.groups[0].model, job.setup, job.text)
        run = start(job.setup, f"latency {sweep} {context}", job.text, "test" if job.text else None, job.models)
        found = timed_rows(job, model, timing_of(job.rounds, job.setup.seed), run["run_id"])
        save("cells", job.cells, found.cells, run)
        save("samples", job.samples, found.samples, run)


def timing_of(rounds: Rounds, seed: int) -> Timing:
    """Return the limits of a job's cells as the sampler takes them."""
    least = {} if rounds.min_rounds is None else {"min_rounds": rounds.min_rounds}
    return Timing(rounds=rounds.rounds, cap_s=rounds.cap_s, seed=seed, **least)


def timed_rows(job: LatencyJob, model: Any, timing: Timing, run_id: str) -> Rows:
    """Run one job; `model` is loaded, or None for random inputs."""
    setup, block = job.setup, job.setup.block
    if isinstance(job, KernelLatencyJob):
        return sweeps.kernel_sweep(
            _problem(job.shape, setup, job.context),
            job.sparsities,
            timing,
            run_id,
            {name: sparse_kernel(name) for name in ("block_sparse", *job.kernels)},
            {name: create(name) for name in job.dense},
            job.blocks,
            job.masks,
        )
    if isinstance(job, AuthorsKernelLatencyJob):
        problem = _problem(job.shape, setup, job.context)
        return sweeps.authors_kernel_sweep(problem, job.sparsities, timing, run_id)
    if isinstance(job, TrainingKernelLatencyJob):
        problem = _problem(job.shape, setup, job.context)
        return sweeps.training_kernel_sweep(problem, timing, run_id, job.naive_limit_mib)
    if isinstance(job, DecodeLatencyJob):
        problem = _problem(job.shape, setup, job.context)
        return sweeps.decode_sweep(problem, job.batches, job.sparsities, job.methods, timing, run_id)
    if isinstance(job, RandomMethodsLatencyJob):
        problem = _problem(job.shape, setup, job.context)
        attention = inputs.random_attention(problem, setup.seed)
        methods = named(random_arms(job.arms, problem, setup, job.plans), problem.block_k)
        return sweeps.methods_sweep(inputs.RANDOM_INPUTS, attention, methods, timing, run_id, problem.block_k)
    (group,) = job.groups
    if isinstance(job, MethodsLatencyJob):
        tokens = text_window(job.tokens, job.context, model, setup.device)
        methods = named(make_arms(group.arms, setup.device), block)
        attention = inputs.capture(model, tokens, job.layer)
        return sweeps.methods_sweep(
            captured_in(group, job.context, model), attention, methods, timing, run_id, block
        )
    if not isinstance(job, FirstTokenLatencyJob):
        raise TypeError(f"no sweep for a {type(job).__name__}")
    if group.model.geometry is None and job.tokens is not None:
        tokens = text_window(job.tokens, job.context, model, setup.device)
        methods = named(make_arms(group.arms, setup.device), block)
        source = captured_in(group, job.context, model)
    else:
        tokens = _random_tokens(job.context, model, setup)
        problem = inputs.problem_of_model(model, job.context, block)
        layers = cast(Mapping[str, Any], group.model.geometry)["num_hidden_layers"]
        methods = named(random_arms(group.arms, problem, setup, job.plans, layers), block)
        source = inputs.random_weights_of(group.model.name)
    alike = group.model.geometry is not None
    return sweeps.ttft_sweep(model, source, tokens, methods, timing, run_id, block, alike)


def _problem(shape: Shape, setup: Setup, context: int) -> AttentionProblem:
    """Return the problem of random inputs."""
    heads = shape.q_heads, shape.kv_heads, shape.head_dim
    return AttentionProblem(setup.device, setup.dtype, shape.batch, *heads, context, shape.block, shape.block)


def captured_in(group: ModelArms, context: int, model: Any) -> inputs.InputSource:
    """Return the source of q, k and v that are captured in a model."""
    return inputs.captured_from(group.model.name, context, model.config.max_position_embeddings)


def text_window(tokens: Tokens, context: int, model: Any, device: str) -> torch.Tensor:
    """Return token ids [1, context] of held-out documents, joined since one may be too short."""
    documents = read_tokens(tokens.file, "test")
    bos, eos = bos_and_eos(model.config)
    window = training_windows(packed(documents, eos), context, 1, np.random.default_rng(0), bos=bos)
    return torch.from_numpy(window).long().to(device)


def _random_tokens(context: int, model: Any, setup: Setup) -> torch.Tensor:
    """Return random token ids [1, context] from the model's vocabulary, for a model with random weights."""
    generator = torch.Generator(setup.device).manual_seed(setup.seed)
    return torch.randint(model.config.vocab_size, (1, context), generator=generator, device=setup.device)


def named(arms: Iterable[Arm], block: int) -> list[tuple[str, Any]]:
    """Return (name, method) for timings. The name shows patterns or blocks that are not the default: "seer-128".

    It shows a gate set other than the paper's v1, as in "seer-v2", if the sweep has several.
    """
    arms = list(arms)
    sets = [arm.gate.set if arm.gate and arm.method.name.startswith("seer") else "" for arm in arms]
    several = len({name for name in sets if name}) > 1
    found = []
    for arm, gate_set in zip(arms, sets, strict=True):
        size = arm.method.block or block
        parts = [arm.method.name, arm.method.variant]
        if several and gate_set != PAPER_GATE:
            parts.append(gate_set)
        # FlexAttention has its own block size, which the name of a dense method leaves out.
        if size != block and arm.method.name not in DENSE:
            parts.append(str(size))
        found.append(("-".join(filter(None, parts)), arm.method))
    return found
