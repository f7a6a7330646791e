"""arms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seerbench.baselines.moa import save_plan
from seerbench.core.problem import AttentionProblem
from seerbench.measure.arm import Arm
from seerbench.methods import block_sparse_kernels
from seerbench.methods.gate import AttnGate
from seerbench.methods.gate_config import GateConfig
from seerbench.methods.gate_files import gate_set_names, load_gates
from seerbench.methods.registry import create
from seerbench.methods.wrappers import variant
from seerbench.presets.preset import SEARCHED, Preset, expand
from seerbench.rows.store import atomically
from seerbench.search import moa


def make_arms(preset: Preset, model: str, flat: Iterable[Mapping[str, Any]]) -> list[Arm]:
    """The methods that the arms ask for, each at one sparsity; gate set `all` stands for every set in its file."""
    arms = []
    for one in flat:
        options = _options(preset, one)
        if one["method"] == "moa":
            options["plan"] = preset.moa_plan(model, one["sparsity"])
        if one.get("patterns") == SEARCHED:
            options["patterns"] = preset.minference_patterns(model)
        recipe = one.get("recipe", "none")
        if "gate" not in one:
            method = variant(create(one["method"], **options), one)
            # A configuration that decides the plan stands beside the number, as a gate's name does.
            arms.append(Arm(method, getattr(method, "source", None), recipe))
            continue
        job, _, gate_set = one["gate"].partition(":")
        file = preset.gates(job)
        for name in gate_set_names(file) if gate_set == "all" else [gate_set]:
            gates = [gate.to(preset.config["device"]) for gate in load_gates(file, name)]
            method = variant(create(one["method"], gates=gates, **options), one)
            arms.append(Arm(method, f"{job}:{name}", recipe))
    return arms


def random_arms(
    preset: Preset, arms: Iterable[Mapping[str, Any]], case: AttentionProblem, model: str | None = None
) -> list[Arm]:
    """The same for random inputs of a case, or for a `model` with random weights: see random_weights.py."""
    seed, dtype = preset.config["seed"], getattr(torch, case.dtype)
    layers = 1 if model is None else preset.config["models"][model]["random"]["num_hidden_layers"]
    found = []
    for one in expand(arms):
        options = _options(preset, one)
        if one["method"] == "seer":
            torch.manual_seed(seed)
            about = GateConfig(block=one.get("block", preset.config["block"]))
            options["gates"] = [
                AttnGate(about, case.q_heads, case.kv_heads, case.head_dim).to(case.device, dtype)
                for _ in range(layers)
            ]
        if one["method"] == "moa":
            options["plan"] = _random_plan(preset, case.q_heads, one["sparsity"], layers)
        method = variant(create(one["method"], **options), one)
        found.append(Arm(method, getattr(method, "source", None)))
    return found


def _random_plan(preset: Preset, heads: int, sparsity: float | None, layers: int = 1) -> Path:
    """A plan of MoA for layers alike whose heads were given random influence: it stands for no model.

    Its windows are as uneven as a search makes them, which is what the kernel's time depends on.
    """
    path = preset.moa_plan(f"random-influence-{layers}x{heads}", sparsity)
    if not path.exists():
        plan = moa.random_plan(heads, sparsity, preset.config["block"], preset.config["seed"])
        alphas, betas = (np.repeat(rules, layers, axis=0) for rules in (plan.alphas, plan.betas))
        atomically(path, lambda part: save_plan(part, alphas, betas, plan.about))
    return path


def _options(preset: Preset, arm: Mapping[str, Any]) -> dict[str, Any]:
    """What the method of an arm is created with, but for its gates and what was searched for its model."""
    options: dict[str, Any] = {} if arm["sparsity"] is None else {"sparsity": arm["sparsity"]}
    if arm["method"] not in (
        *block_sparse_kernels.DENSE,
        "seer",
    ):  # a gate has its own block, dense methods have none
        options["block"] = arm.get("block", preset.config["block"])
    if arm.get("patterns", SEARCHED) != SEARCHED:
        options["patterns"] = arm["patterns"]
    return options
