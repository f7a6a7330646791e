"""One trial of the pooled kernel on an H100: right, as fast as the old one (trial_pool/old), in less memory?

    PYTHONPATH=. python trial_pool/trial.py --budget 60 out.json

Not part of the product. Stages in order of worth, and the JSON is written after each; a stage is not begun past
the budget.
"""

import argparse
import importlib.util
import json
import random
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from seerbench.attention import assert_no_worse_than_rounding
from seerbench.kernels import pooled_attention as portable
from seerbench.kernels import pooled_hopper as new
from seerbench.timing import peak_mib

HERE = Path(__file__).parent
START = time.perf_counter()
RESULT = {"checks": [], "timing": {}, "failed": []}
BF16, FP16 = torch.bfloat16, torch.float16
# n, query heads, key/value heads, head_dim, block, dtype, batch
FIRST = [
    (1, 4, 1, 128, 64, BF16, 1), (65, 8, 1, 128, 64, BF16, 1), (1000, 8, 2, 128, 64, BF16, 2),
    (4095, 8, 2, 128, 64, BF16, 1), (5000, 16, 4, 128, 64, BF16, 1), (8192, 2, 2, 128, 64, BF16, 1),
]  # fmt: skip
REST = [
    (63, 8, 1, 128, 128, BF16, 1), (64, 1, 1, 128, 128, BF16, 1), (127, 8, 8, 128, 128, BF16, 1),
    (1000, 4, 1, 128, 128, BF16, 1), (5000, 16, 4, 128, 128, BF16, 1), (8192, 2, 1, 128, 128, BF16, 1),
    (1, 8, 1, 64, 64, BF16, 1), (65, 8, 1, 64, 64, BF16, 1), (1000, 8, 2, 64, 128, BF16, 2),
    (5000, 16, 4, 64, 64, BF16, 1), (8192, 2, 2, 64, 128, BF16, 1),
    (65, 4, 1, 128, 64, FP16, 1), (1000, 8, 1, 128, 64, FP16, 1), (4095, 8, 2, 128, 64, FP16, 1),
    (5000, 16, 4, 128, 128, FP16, 1), (5000, 16, 4, 64, 64, FP16, 1),
]  # fmt: skip


def say(*words):
    print(f"[{time.perf_counter() - START:6.1f} s]", *words, flush=True)


def old_kernel():
    name = "pooled_hopper_old"
    spec = importlib.util.spec_from_file_location(name, HERE / "old" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def inputs(n, heads, kv, dim, dtype=BF16, batch=1, views=False):
    torch.manual_seed(n + heads)
    made = [torch.randn(batch, h, n, dim, device="cuda").to(dtype) for h in (heads, kv, kv)]
    return [x.transpose(1, 2).contiguous().transpose(1, 2) for x in made] if views else made


def poison(value, log_bytes):
    """Leave `value` (fp32) in the memory that the allocator hands out next: small blocks, and one large."""
    held = [torch.full((2**k // 4,), value, device="cuda") for k in range(9, 21)]
    held += [torch.full((2**log_bytes // 4,), value, device="cuda") for _ in range(2)]
    del held


def check(n, heads, kv, dim, block, dtype, batch):
    """Against the float64 oracle; O once over NaN, once over infinities, which a maximum would not ignore."""
    views = n == 1000
    q, k, v = inputs(n, heads, kv, dim, dtype, batch, views)
    exact = portable.naive_pooled_attention(q, k, v, block, torch.float64)
    rounded = portable.naive_pooled_attention(q, k, v, block)
    for value in (torch.nan, torch.inf):
        poison(value, 27)
        got = new.pooled_attention(q, k, v, block)
        for name, a, e, r in zip(("o", "lse", "d"), got, exact, rounded, strict=True):
            try:
                assert_no_worse_than_rounding(a, e, r)
            except AssertionError as error:
                raise AssertionError(f"{name} over {value}: {error}") from error
        assert (got[2].triu(1) == 0).all(), "D above the diagonal"


def bits(x):
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def differing(a, b):
    """How many elements differ in their bits, a head at a time."""
    return [sum(int((bits(x[:, h]) != bits(y[:, h])).sum()) for h in range(x.shape[1])) for x, y in zip(a, b)]


def far(a, b, floor):
    """Largest |a - b| / max(|b|, floor), a head at a time."""
    worst = 0.0
    for h in range(a.shape[1]):
        x, y = a[:, h].float(), b[:, h].float()
        worst = max(worst, ((x - y).abs() / y.abs().clamp_min(floor)).nan_to_num(torch.inf).max().item())
    return worst


def check_long(old, n, block):
    """At full length: three runs over other poison have the same bits (a race would not), the two passes agree."""
    q, k, v = inputs(n, 32, 8, 128)
    poison(torch.inf, 31)
    first = new.pooled_attention(q, k, v, block)
    again = []
    for value in (torch.nan, 0.0, torch.inf):
        poison(value, 31)
        again.append(differing(new.pooled_attention(q, k, v, block), first))
    before = differing(old.pooled_attention(q, k, v, block), first)
    torch.cuda.synchronize()
    both = portable.two_passes(q, k, v, block)
    lse = (first[1] - both[1]).abs().max().item()
    # Late rows: O is about 0.005 there. A lost tile is 1e-3 of a row's sum, and so of its log.
    o = far(first[0][:, :, n // 2 :], both[0][:, :, n // 2 :], 0.01)
    d = far(first[2], both[2], 2.0**-100)
    upper = max(int((first[2][:, h].triu(1) != 0).sum()) for h in range(32))
    RESULT["checks"].append(
        {"n": n, "block": block, "bits differing from itself": again, "from the old kernel": before,
         "two passes: lse": lse, "o": o, "d": d, "above the diagonal": upper}
    )  # fmt: skip
    say("long", RESULT["checks"][-1])
    assert all(x == [0, 0, 0] for x in again), "runs differ: a race?"
    assert upper == 0
    assert lse < 1e-4, lse
    assert o < 2**-5, o  # two roundings of O and of P to bf16
    assert d < 2**-6, d  # two roundings to bf16, and both exponents' arguments


def sdpa(q, k, v):
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def measure(old, n, rounds):
    q, k, v = inputs(n, 32, 8, 128)
    methods = {
        "fa2": lambda: sdpa(q, k, v),
        "old 64": lambda: old.pooled_attention(q, k, v, 64),
        "new 64": lambda: new.pooled_attention(q, k, v, 64),
        "old 128": lambda: old.pooled_attention(q, k, v, 128),
        "new 128": lambda: new.pooled_attention(q, k, v, 128),
    }
    flush = torch.empty(2**28, dtype=torch.int8, device="cuda")
    times = {name: [] for name in methods}
    for call in methods.values():
        call()
    for _ in range(rounds):
        for name in random.sample(list(methods), len(methods)):
            flush.zero_()
            torch.cuda._sleep(1_000_000)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            methods[name]()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end))
    del flush
    rows = {}
    for name, call in methods.items():
        share = [x / y for x, y in zip(times[name], times["fa2"], strict=True)]
        mib = peak_mib(call, "cuda")
        rows[name] = {
            "ms": times[name], "median ms": statistics.median(times[name]),
            "share of fa2": statistics.median(share), "peak MiB": mib, "peak GB": mib * 2**20 / 1e9,
        }  # fmt: skip
        say(f"{n:7d} {name:8s} {rows[name]['median ms']:9.3f} ms  {rows[name]['share of fa2']:.4f} of FA-2"
            f"  {mib:8.1f} MiB = {rows[name]['peak GB']:.4f} GB")  # fmt: skip
    RESULT["timing"][str(n)] = rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--budget", type=float, default=60)
    args = parser.parse_args()
    old = old_kernel()
    RESULT["device"] = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    say(RESULT["device"])
    stages = [(f"check {case}", check, case) for case in FIRST]
    stages += [("128k alike", check_long, (old, 131072, 64)), ("128k", measure, (old, 131072, 5))]
    stages += [("8k", measure, (old, 8192, 15)), ("32k", measure, (old, 32768, 9))]
    stages += [(f"check {case}", check, case) for case in REST]
    stages += [("128k alike, 128", check_long, (old, 131072, 128))]
    for name, stage, arguments in stages:
        if time.perf_counter() - START > args.budget:
            RESULT["failed"].append(f"{name}: not begun, past the budget")
            say(name, "not begun, past the budget")
            continue
        try:
            stage(*arguments)
            torch.cuda.synchronize()
            RESULT["checks"].append(f"passed: {name}")
            say("passed", name)
        except Exception as error:  # told, and the next stage tried
            RESULT["failed"].append(f"{name}: {type(error).__name__}: {str(error)[:500]}")
            say("FAILED", RESULT["failed"][-1])
        args.out.write_text(json.dumps(RESULT, indent=1, default=str))
        torch.cuda.empty_cache()
    args.out.write_text(json.dumps(RESULT, indent=1, default=str))
    say("failed or not begun:", len(RESULT["failed"]))


if __name__ == "__main__":
    main()
