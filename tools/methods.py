"""Run every method on a GPU at the paper's shape: `check` against the reference, `time` plan, attend and memory.

    python tools/methods.py check | time

`time` prints medians of a few rounds of seerbench.measure.sampler, plan and attention of a method interleaved. It
serves kernel work; published times come from `seerbench latency`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seerbench.baselines.moa import save_plan
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.core.tolerance import error_and_budget
from seerbench.kernels.vertical_slash import api, convert
from seerbench.measure.inputs import random_inputs
from seerbench.measure.sampler import Candidate, Timing, sample, timer_for
from seerbench.methods.registry import create

Q_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128


def arms(folder: Path) -> dict[str, Any]:
    """Return the methods to run, by name. MoA gives its heads a short and a long span in turn."""
    save_plan(folder / "moa.json", [[0.0] * Q_HEADS], [[0.125, 0.5] * (Q_HEADS // 2)])
    made = {"moa": create("moa", plan=folder / "moa.json")}
    for name, block in (
        ("minference-aligned", 64),
        ("flexprefill", 128),
        ("xattention", 128),
        ("flashprefill", 128),
        ("flashprefill-v2", 128),
    ):
        made[f"{name}-{block}"] = create(name, block=block)
    return made | {"minference": create("minference"), "minference-v1": create("minference", patterns="v1")}


def draw(context: int) -> list[Tensor]:
    """Return q, k and v of the paper's shape in bfloat16."""
    problem = AttentionProblem("cuda", "bfloat16", 1, Q_HEADS, KV_HEADS, HEAD_DIM, context)
    return list(random_inputs(problem, seed=0))


def flags(context: int, chance: float, near: int = 1) -> list[Tensor]:
    """Return selected columns and diagonals, bool [1, Hq, N]; the nearest `near` diagonals are selected."""
    generator = torch.Generator("cuda").manual_seed(1)
    both = [torch.rand(1, Q_HEADS, context, generator=generator, device="cuda") < chance for _ in range(2)]
    both[1][..., :near] = True
    return both


@torch.no_grad()
def check(methods: dict[str, Any]) -> None:
    """Print each method's error and error budget, and whether the GPU's index conversion equals the CPU's."""
    q, k, v = draw(1000)
    for name, method in methods.items():
        plan = method.plan(q, k, LayerContext())
        exact, rounded = (method.exact(q, k, v, plan, dtype) for dtype in (torch.float64, q.dtype))
        error, budget = error_and_budget(method.attend(q, k, v, plan), exact, rounded)
        print(f"{name:24} error {error:.2e} of {budget:.2e} {'ok' if error <= budget else 'WRONG'}", flush=True)
    for context in (1, 64, 333, 4096, 20_000):
        both = flags(context, 0.05)
        gpu = api.vertical_slash_tiles(*both)
        cpu = api.vertical_slash_tiles(*(x.cpu() for x in both))
        names = ("tile_counts", "column_counts", "tile_starts", "columns")
        same = [torch.equal(getattr(gpu, name).cpu(), getattr(cpu, name)) for name in names]
        print(f"index conversion of {context} tokens: {'equal' if all(same) else f'DIFFERENT {same}'}", flush=True)


def medians_ms(calls: dict[str, Callable[[], Any]], rounds: int = 5) -> dict[str, float]:
    """Return the median of each call's times over interleaved rounds."""
    candidates = {name: Candidate({"call": call}) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for one in sample(candidates, Timing(rounds=rounds, min_rounds=rounds), timer_for("cuda")):
        times[one.method].append(one.ms)
    return {name: statistics.median(ms) for name, ms in times.items()}


@torch.no_grad()
def timed(methods: dict[str, Any], context: int) -> None:
    """Print the times of the index conversion, then each method's times, sparsity and peak memory of the plan."""
    both = flags(context, 0.02, 1000)
    ms = medians_ms({"scan": lambda: convert.scan(*both), "all": lambda: api.vertical_slash_tiles(*both)})
    print(f"{context:7} index conversion {ms['all']:8.3f} ms, of which the scan {ms['scan']:7.3f}", flush=True)
    q, k, v = draw(context)
    for name, method in methods.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        plan = method.plan(q, k, LayerContext())
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        calls = {
            "plan": lambda method=method: method.plan(q, k, LayerContext()),
            "attend": lambda method=method, plan=plan: method.attend(q, k, v, plan),
        }
        ms = medians_ms(calls, 3)
        text = f"plan {ms['plan']:9.3f} attend {ms['attend']:9.3f} ms, skipped {1 - plan.density():.3f}"
        print(f"{context:7} {name:24} {text}, peak of the plan {peak:8.0f} MiB", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["check", "time"])
    what = parser.parse_args().what
    with tempfile.TemporaryDirectory() as folder:
        found = arms(Path(folder))
        if what == "check":
            check(found)
        else:
            for context in (8192, 32768, 131072):
                started = time.time()
                timed(found, context)
                print(f"{time.time() - started:.1f} s", flush=True)
