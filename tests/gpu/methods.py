"""Every method on a GPU at the paper's shape: `check` against the oracle, `time` plan, attend and memory. By hand.

    python tests/gpu/methods.py check | time

`time` prints CUDA-event medians of a few calls, not interleaved: for a look while working; results come from
`seerbench latency`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch

from seerbench import calibrate
from seerbench.attention import Case, Layer, block_count
from seerbench.baselines.moa import save_plan
from seerbench.kernels import vertical_slash
from seerbench.latency import check_method, random_attention
from seerbench.registry import create

HEADS = (32, 8, 128)


def arms(folder: Path) -> list[tuple[str, object]]:
    """(name, method) of all that is compared."""
    plan = calibrate.random_plan(HEADS[0], 0.7, 64, 0)
    save_plan(folder / "moa.json", plan.alphas, plan.betas)
    made = [("moa", create("moa", plan=folder / "moa.json"))]
    for name, block in (
        ("minference-aligned", 64),
        ("flexprefill", 128),
        ("xattention", 128),
        ("flashprefill", 128),
    ):
        made.append((f"{name}-{block}", create(name, block=block)))
    made += [("minference", create("minference")), ("minference-v1", create("minference", patterns="v1"))]
    return made


def check(methods: list[tuple[str, object]]) -> None:
    """Error and budget of each at an odd length, and whether lists agree with the CPU's."""
    q, k, v, layer = random_attention(Case("cuda", "bfloat16", 1, *HEADS, 1000), 0)
    for name, method in methods:
        error, budget = check_method(method, q, k, v, layer)
        print(f"{name:24} error {error:.2e} budget {budget:.2e} {'ok' if error <= budget else 'WRONG'}", flush=True)
    generator = torch.Generator("cuda").manual_seed(0)
    for tokens in (1, 64, 333, 4096, 20_000):
        columns, diagonals = (torch.rand(1, 3, tokens, generator=generator, device="cuda") < 0.05 for _ in range(2))
        diagonals[..., 0] = True
        gpu = vertical_slash.vertical_slash_tiles(columns, diagonals)
        cpu = vertical_slash.vertical_slash_tiles(columns.cpu(), diagonals.cpu())
        same = [
            torch.equal(getattr(gpu, name).cpu(), getattr(cpu, name)) for name in ("tile_counts", "column_counts")
        ] + [bool((gpu.to_token_mask().cpu() == cpu.to_token_mask()).all()) if tokens < 5000 else True]
        print(f"index conversion, {tokens} tokens: {'equal' if all(same) else f'DIFFERENT {same}'}", flush=True)


def median_ms(call, rounds: int = 5) -> float:
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
def timed(methods: list[tuple[str, object]]) -> None:
    """A line a method and context."""
    started = time.time()
    for context in (8192, 32768, 131072):
        q, k, v, layer = random_attention(Case("cuda", "bfloat16", 1, *HEADS, context), 0)
        columns, diagonals = (torch.rand(1, HEADS[0], context, device="cuda") < 0.02 for _ in range(2))
        diagonals[..., :1000] = True
        scan = median_ms(lambda: vertical_slash._scan_on_gpu(columns, diagonals))
        whole = median_ms(lambda: vertical_slash.vertical_slash_tiles(columns, diagonals))
        print(f"{context:7} index conversion {whole:8.3f} ms, of it the scan {scan:7.3f}", flush=True)
        for name, method in methods:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            plan = method.plan(q, k, layer)
            peak = (torch.cuda.max_memory_allocated() - before) / 2**20
            plan_ms = median_ms(lambda method=method: method.plan(q, k, layer), 3)
            attend = median_ms(lambda method=method, plan=plan: method.attend(q, k, v, plan), 3)
            print(
                f"{context:7} {name:24} plan {plan_ms:9.3f} attend {attend:9.3f} ms, skipped {1 - plan.density():.3f}, "
                f"plan's peak {peak:8.0f} MiB, {block_count(context, 64)} blocks of 64, {time.time() - started:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        methods = arms(Path(folder))
        check(methods) if sys.argv[1] == "check" else timed(methods)
