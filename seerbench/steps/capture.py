"""Step that captures workloads for kernels: q, k and v of layers of a model, and the masks that methods plan there.

The model, its text and the methods are those of the preset's sweep `methods`. measure/workloads.py has the format.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.errors import ConfigError, Refused
from seerbench.measure.arm import Arm
from seerbench.measure.inputs import capture_layers
from seerbench.measure.sweeps.entries import mask_kind
from seerbench.measure.workloads import Writer, is_capture
from seerbench.methods.protocol import Method
from seerbench.presets.jobs import MethodsLatencyJob
from seerbench.presets.preset import Preset
from seerbench.presets.types import MethodsSweep
from seerbench.rows.provenance import finish
from seerbench.steps.arms import make_arms
from seerbench.steps.common import load_model, require, start
from seerbench.steps.data import make_inputs
from seerbench.steps.latency import captured_in, named, text_window
from seerbench.writing import atomically

SWEEP = "methods"


def capture_workloads(
    preset: Preset, contexts: Sequence[int], layers: Sequence[int], kv_heads: Sequence[int], out: Path
) -> list[dict[str, Any]]:
    """Write q, k and v of a model's layers, and each method's block mask on them; return what was left out.

    A model that the preset takes out of a wheel, and the text, are made first if they are missing.
    A mask is planned on all heads of its layer, also where few are kept. A method whose plan is no BlockMask, and
    one that refuses, is left out; the manifest has the reason too.

    Args:
        preset: the preset; its sweep `methods` has the model, the text and the methods.
        contexts: lengths in tokens; empty: those of the sweep. At another length than these, the methods are those
            of the nearest one.
        layers: indices of the layers; empty: that of the sweep.
        kv_heads: indices of the key/value heads, each of which is kept with its query heads; empty: all.
        out: the folder to write. An earlier capture there is replaced.

    Raises:
        ConfigError: the sweep is not in a model, `out` has other content, or a head does not exist.
        MissingInput: a file that an earlier step makes is missing.
        MeasureError: the model has no such layer.
    """
    jobs = _jobs(preset, contexts)
    make_inputs(preset, jobs[0].groups[0].model, {job.tokens for job in jobs})
    if out.exists() and not is_capture(out) and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} has other content than captured workloads; name another folder with --out")
    needed = [file for job in jobs for file in (*job.token_files, *job.arm_files)]
    require(preset, dict.fromkeys(needed), [out])
    first = jobs[0]
    model = load_model(first.groups[0].model, first.setup, first.text)
    layers = sorted(layers) or [first.layer]
    options = {"--contexts": [job.context for job in jobs], "--layers": layers, "--kv-heads": kv_heads}
    given = [word for name, values in options.items() if values for word in (name, ",".join(map(str, values)))]
    words = ["seerbench", "capture", preset.reference, *given, "--out", str(out)]
    run = start(first.setup, "capture", first.text, "test", first.models) | {"command": shlex.join(words)}

    def write(folder: Path) -> list[dict[str, Any]]:
        writer = Writer(folder)
        for job in jobs:
            _capture(job, model, layers, kv_heads, writer)
        writer.close(finish(run))
        return writer.left_out

    return atomically(out, write)


def _jobs(preset: Preset, contexts: Sequence[int]) -> list[MethodsLatencyJob]:
    """Return one job per context, with the preset's methods at the nearest length that it times."""
    section = preset.file.sweeps().get(SWEEP)
    if not isinstance(section, MethodsSweep) or section.model is None:
        raise ConfigError(
            f"the preset {preset.name} has no sweep `{SWEEP}` in a model, from which q, k and v could be captured; "
            "take another preset, such as cpu or gpu"
        )
    found = []
    for context in contexts or section.contexts:
        nearest = min(section.contexts, key=lambda timed: abs(timed - context))
        job = preset.latency(SWEEP, nearest)
        if isinstance(job, MethodsLatencyJob):
            found.append(replace(job, context=context))
    return found


def _capture(
    job: MethodsLatencyJob, model: Any, layers: Sequence[int], kv_heads: Sequence[int], writer: Writer
) -> None:
    """Capture the layers of one context and plan on them; `kv_heads` as for `capture_workloads`."""
    (group,) = job.groups
    tokens = text_window(job.tokens, job.context, model, job.setup.device)
    # Another kernel, and what a method adds for skipped blocks, leave its mask as it is.
    arms = make_arms([arm for arm in group.arms if not arm.kernel and not arm.mean_correction], job.setup.device)
    methods = [
        (arm, name)
        for arm, (name, method) in zip(arms, named(arms, job.setup.block), strict=True)
        if mask_kind(method) != "dense"
    ]
    source = captured_in(group, job.context, model)
    captured = capture_layers(model, tokens, layers)
    with tqdm(total=len(captured) * len(methods), desc=f"masks at {job.context} tokens", unit="mask") as bar:
        for q, k, v, layer in captured:
            heads = list(kv_heads) or list(range(k.shape[1]))
            if not all(0 <= head < k.shape[1] for head in heads):
                raise ConfigError(f"--kv-heads: choose among the model's heads 0 to {k.shape[1] - 1}")
            of_group = q.shape[1] // k.shape[1]
            query_heads = [head * of_group + place for head in heads for place in range(of_group)]
            place = f"{job.context}-layer{layer.index}"
            kept = q[:, query_heads], k[:, heads], v[:, heads]
            inputs = writer.inputs(place, *kept)
            for arm, name in methods:
                bar.update()
                labels = arm.labels()
                facts = {"layer": layer.index, "method": name, "requested": labels["sparsity_requested"]}
                mask = _planned(arm, q, k, layer)
                if isinstance(mask, str):
                    writer.leave_out(context=job.context, **facts, reason=mask)
                    continue
                mask = of_heads(mask, query_heads)
                problem = AttentionProblem.of(*kept[:2], mask.block_q, mask.block_k)
                asked = "" if facts["requested"] is None else f"-{facts['requested']:.2f}"
                facts |= {"kv_heads": heads, "gate": labels["gate"], "mask_kind": mask_kind(arm.method)}
                writer.mask(inputs, problem, mask, f"{place}-{name}{asked}", **facts, source=source)


@torch.no_grad()
def _planned(arm: Arm, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask | str:
    """Return an arm's mask on a layer, or the reason why there is none."""
    method: Method[Any] = arm.method
    block = method.block or 0
    refusal = method.refuses(AttentionProblem.of(q, k, method.block_q or block, block))
    if refusal:
        return refusal
    try:
        if method.sparsity is not None:
            method = method.with_threshold_for(q, k, layer)
        plan = method.plan(q, k, layer)
    except Refused as refused:
        return str(refused)
    return plan if isinstance(plan, BlockMask) else "its plan is no BlockMask"


def of_heads(mask: BlockMask, heads: Sequence[int]) -> BlockMask:
    """Return the lists of some query heads of a mask, no wider than their longest row."""
    counts = mask.kv_num_blocks[:, heads]
    width = max(1, int(counts.max()))
    indices = mask.kv_indices[:, heads, :, :width]
    return BlockMask(counts, indices, mask.tokens, mask.block_q, mask.block_k)
