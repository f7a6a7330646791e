"""Run every method on a GPU at the paper's shape: `check` against the reference, `time` plan, attend and memory.

    python tools/methods.py check | time

`time` prints CUDA-event medians of a few calls, not interleaved: for a look while working; results come from
`seerbench latency`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seerbench.baselines.moa import save_plan
from seerbench.core.problem import LayerContext
from seerbench.core.reference import reference_attention
from seerbench.core.tolerance import error_and_budget
from seerbench.kernels.vertical_slash import api, convert
from seerbench.methods.registry import create

Q_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128


def arms(folder: Path) -> dict[str, Any]:
    """All methods that are looked at; MoA with two spans by turns."""
    save_plan(folder / "moa.json", [[0.0] * Q_HEADS], [[0.125, 0.5] * (Q_HEADS // 2)])
    made = {"moa": create("moa", plan=folder / "moa.json")}
    for name, block in (
        ("minference-aligned", 64),
        ("flexprefill", 128),
        ("xattention", 128),
        ("flashprefill", 128),
    ):
        made[f"{name}-{block}"] = create(name, block=block)
    return made | {"minference": create("minference"), "minference-v1": create("minference", patterns="v1")}


def draw(context: int) -> list[Tensor]:
    """q, k, v of the paper's shape in bfloat16."""
    generator = torch.Generator("cuda").manual_seed(0)
    return [
        torch.randn(1, heads, context, HEAD_DIM, generator=generator, device="cuda", dtype=torch.bfloat16)
        for heads in (Q_HEADS, KV_HEADS, KV_HEADS)
    ]


def flags(context: int, chance: float, near: int = 1) -> list[Tensor]:
    """Columns and diagonals, the nearest `near` diagonals among them."""
    generator = torch.Generator("cuda").manual_seed(1)
    both = [torch.rand(1, Q_HEADS, context, generator=generator, device="cuda") < chance for _ in range(2)]
    both[1][..., :near] = True
    return both


@torch.no_grad()
def check(methods: dict[str, Any]) -> None:
    """Error and budget of each at an odd length, and whether the index conversion agrees with the CPU's."""
    q, k, v = draw(1000)
    for name, method in methods.items():
        plan = method.plan(q, k, LayerContext())
        exact, rounded = reference_attention(q, k, v, plan)[0], reference_attention(q, k, v, plan, q.dtype)[0]
        error, budget = error_and_budget(method.attend(q, k, v, plan), exact, rounded)
        print(f"{name:24} error {error:.2e} of {budget:.2e} {'ok' if error <= budget else 'WRONG'}", flush=True)
    for context in (1, 64, 333, 4096, 20_000):
        both = flags(context, 0.05)
        gpu = api.vertical_slash_tiles(*both)
        cpu = api.vertical_slash_tiles(*(x.cpu() for x in both))
        names = ("tile_counts", "column_counts", "tile_starts", "columns")
        same = [torch.equal(getattr(gpu, name).cpu(), getattr(cpu, name)) for name in names]
        print(f"index conversion of {context} tokens: {'equal' if all(same) else f'DIFFERENT {same}'}", flush=True)


def median_ms(call: Callable[[], Any], rounds: int = 5) -> float:
    """Median of CUDA-event times after one warm-up call."""
    call()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[rounds // 2]


@torch.no_grad()
def timed(methods: dict[str, Any], context: int) -> None:
    """Print one line per method."""
    both = flags(context, 0.02, 1000)
    scan = median_ms(lambda: convert.scan(*both))
    whole = median_ms(lambda: api.vertical_slash_tiles(*both))
    print(f"{context:7} index conversion {whole:8.3f} ms, of it the scan {scan:7.3f}", flush=True)
    q, k, v = draw(context)
    for name, method in methods.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        plan = method.plan(q, k, LayerContext())
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        times = [
            median_ms(lambda method=method: method.plan(q, k, LayerContext()), 3),
            median_ms(lambda method=method, plan=plan: method.attend(q, k, v, plan), 3),
        ]
        said = f"plan {times[0]:9.3f} attend {times[1]:9.3f} ms, skipped {1 - plan.density():.3f}"
        print(f"{context:7} {name:24} {said}, peak of the plan {peak:8.0f} MiB", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = arms(Path(folder))
        if sys.argv[1] == "check":
            check(found)
        else:
            for context in (8192, 32768, 131072):
                started = time.time()
                timed(found, context)
                print(f"{time.time() - started:.1f} s", flush=True)
