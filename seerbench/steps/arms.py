"""Make methods from the arms of a job: load gates, name plans, fill in options."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seerbench.baselines.decode.by_name import BASELINES
from seerbench.baselines.decode.dense import DenseDecode
from seerbench.baselines.moa import save_plan
from seerbench.core.problem import AttentionProblem
from seerbench.errors import ConfigError
from seerbench.measure.arm import Arm
from seerbench.measure.names import DENSE_DECODE
from seerbench.methods.decode_gate import load_decode_gates
from seerbench.methods.decode_protocol import DecodeMethod
from seerbench.methods.gate import AttnGate
from seerbench.methods.gate_config import GateConfig
from seerbench.methods.gate_files import gate_set_names, load_gates
from seerbench.methods.registry import card_of, create
from seerbench.methods.seer_decode import SeerDecode
from seerbench.methods.wrappers import variant
from seerbench.presets.jobs import ArmJob, DecodeJob, Setup
from seerbench.presets.paths import moa_plan_name
from seerbench.presets.types import DEFAULT_PATTERNS
from seerbench.rows.gate_ref import EVERY_SET, GateRef
from seerbench.rows.schema import SPREADS
from seerbench.search.moa import random_plan
from seerbench.writing import atomically


def make_arms(arms: Iterable[ArmJob], device: str) -> list[Arm]:
    """Return the methods that run in a model with weights; gate set `all` stands for every set in its file."""
    found = []
    for arm in arms:
        options = _options(arm)
        if arm.plan is not None:
            options["plan"] = arm.plan
        if arm.gate is None or arm.gates is None:
            method = _method(arm, options)
            found.append(Arm(method, None, arm.recipe, *_decoding(arm.decode, device)))
            continue
        names = gate_set_names(arm.gates) if arm.gate.set == EVERY_SET else [arm.gate.set]
        for name in names:
            gates = [gate.to(device) for gate in load_gates(arm.gates, name)]
            method = _method(arm, {"gates": gates, **options})
            found.append(Arm(method, GateRef(arm.gate.job, name), arm.recipe, *_decoding(arm.decode, device)))
    return found


def _decoding(job: DecodeJob | None, device: str) -> tuple[DecodeMethod[Any] | None, GateRef | None]:
    """Return the method for decoding of an arm, and its gate set."""
    if job is None:
        return None, None
    if job.method == DENSE_DECODE:
        return DenseDecode(), None
    if job.gate is None or job.gates is None:
        assert job.budget is not None  # the preset's checks
        assert job.block is not None
        return BASELINES[job.method](job.budget, job.block), None
    gates = [gate.to(device) for gate in load_decode_gates(job.gates, job.gate.set)]
    try:
        return SeerDecode(gates, job.budget, job.threshold, job.rotated_by), job.gate
    except ValueError as error:  # a budget below the block of gates that were not made here
        raise ConfigError(f"decoding with {job.gate}: {error}") from None


def random_arms(
    arms: Iterable[ArmJob], problem: AttentionProblem, setup: Setup, plans: Path, layers: int = 1
) -> list[Arm]:
    """Return the methods that run on random inputs, or in `layers` layers of random weights (random_weights.py).

    plans: the folder of MoA's plans for random influence.
    """
    found = []
    for arm in arms:
        options = _options(arm)
        if arm.method == "seer":
            torch.manual_seed(setup.seed)
            config, dtype = GateConfig(block=arm.block), getattr(torch, problem.dtype)
            options["gates"] = [
                AttnGate(config, problem.q_heads, problem.kv_heads, problem.head_dim).to(problem.device, dtype)
                for _ in range(layers)
            ]
        if arm.method == "moa":
            options["plan"] = _random_plan(plans, problem.q_heads, arm, layers, setup)
        method = _method(arm, options)
        found.append(Arm(method))
    return found


def _random_plan(plans: Path, heads: int, arm: ArmJob, layers: int, setup: Setup) -> Path:
    """Return the file of a plan of MoA, the same in every layer, for heads that were given random influence.

    The plan belongs to no model. Its windows differ in length as those of a search do, and the kernel's time
    depends on those lengths.
    """
    budget = arm.sparsity, arm.last_rows_dense
    drawn = f"random-influence-{layers}x{heads}-block{setup.block}-seed{setup.seed}"
    path = plans / moa_plan_name(drawn, *budget)
    if not path.exists():
        plan = random_plan(heads, setup.block, setup.seed, *budget)
        alphas, betas = (np.repeat(rules, layers, axis=0) for rules in (plan.alphas, plan.betas))
        atomically(path, lambda part: save_plan(part, alphas, betas, plan.provenance))
    return path


def _method(arm: ArmJob, options: dict[str, Any]) -> Any:
    method = create(arm.method, **options)
    if arm.patterns is not None and arm.patterns != DEFAULT_PATTERNS:
        method.variant = "searched" if arm.searched else Path(arm.patterns).stem
    _name_options(method, arm, options)
    return variant(method, arm.kernel, arm.mean_correction, arm.last_rows_dense)


def _name_options(method: Any, arm: ArmJob, options: dict[str, Any]) -> None:
    """Add to a method's `variant` and `configuration` what tells it from other arms of the method.

    That is the arm's threshold, and each option that differs from its default and that the method does not show by
    itself: the two texts are the same without it.

    Args:
        method: the arm's method, as it was made.
        arm: the arm.
        options: the arguments from which the method was made.
    """
    arguments = inspect.signature(type(method)).parameters
    defaults = {name: argument.default for name, argument in arguments.items()}
    suffixes = [method.variant, None if arm.threshold is None else str(arm.threshold)]
    settings = [method.configuration]
    for name, value in arm.options.items():
        if value == defaults.get(name):
            continue
        other = create(arm.method, **{key: option for key, option in options.items() if key != name})
        if other.variant == method.variant:
            suffixes.append(f"{name}{value}")
        if other.configuration == method.configuration:
            settings.append(f"{name} {value}")
    method.variant = "-".join(filter(None, suffixes)) or None
    method.configuration = ", ".join(filter(None, settings)) or None


def _options(arm: ArmJob) -> dict[str, Any]:
    """Return the keyword arguments of an arm's method, except its gates and MoA's plan."""
    options: dict[str, Any] = {} if arm.sparsity is None else {"sparsity": arm.sparsity}
    if arm.threshold is not None:
        options |= {"sparsity": None, "threshold": arm.threshold}
    if arm.spread != SPREADS[0]:
        options["spread"] = arm.spread
    if arm.forced:
        options["forced"] = True
    options |= arm.options
    if card_of(arm.method).takes("block"):  # a gate has its own block, dense methods have none
        options["block"] = arm.block
    if arm.patterns is not None:
        options["patterns"] = arm.patterns
    return options
