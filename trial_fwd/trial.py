"""One trial of variants of the Hopper forward on a GPU: correctness first, then times, interleaved.

    PYTHONPATH=/tmp/repo python trial_fwd/trial.py OUT.json --budget 150

Every variant (block_sparse_hopper_NAME.py beside this file) is checked in a process of its own, several at a time,
since a wrong barrier hangs; survivors are timed in this one beside the landed kernel, FA-2 and FlashAttention-4, the
most important cases first, until the budget in seconds is spent. OUT.json is rewritten after every case.
"""

# ruff: noqa: E501, RUF005, RUF100
from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
VARIANTS = sorted(p.stem.removeprefix("block_sparse_hopper_") for p in HERE.glob("block_sparse_hopper_*.py"))
# (context, block, sparsity, gate-shaped, rounds, seconds it is reckoned to take), the most important first.
CASES = [
    (131072, 128, 0.9, False, 4, 9),
    (32768, 128, 0.9, False, 7, 4),
    (131072, 64, 0.9, False, 3, 9),
    (32768, 64, 0.9, False, 7, 4),
    (32768, 128, 0.5, False, 7, 4),
    (32768, 128, 0.0, False, 5, 4),
    (32768, 128, 0.9, True, 7, 4),
    (8192, 128, 0.9, False, 9, 3),
    (131072, 128, 0.9, True, 4, 9),
    (131072, 128, 0.5, False, 3, 10),
    (8192, 64, 0.9, False, 9, 3),
]


def load(name):
    """A variant's module, or the landed kernel for "landed"."""
    if name == "landed":
        return importlib.import_module("seerbench.kernels.block_sparse_hopper")
    sys.path.insert(0, str(HERE))
    return importlib.import_module(f"block_sparse_hopper_{name}")


def use_repo(repo):
    """kernel_cases and ladder live in tests/gpu of the repository."""
    sys.path.insert(0, str(Path(repo) / "tests" / "gpu"))


def check(name):
    """Small cases against the float64 oracle; raises where one is wrong."""
    print("imported", flush=True)
    from kernel_cases import build_mask, check_attention, draw

    module = load(name)
    b, h = torch.bfloat16, torch.float16
    cases = [  # tokens, mask, dtype, blocks, group, kv heads, head_dim, batch
        (1000, "random", b, (128, 128), 4, 2, 128, 2),
        (1000, "empty-rows", b, (128, 128), 4, 1, 128, 1),
        (1, "full", b, (128, 128), 1, 2, 128, 1),
        (63, "diagonal", h, (128, 128), 8, 1, 128, 1),
        (65, "full", b, (64, 64), 4, 1, 128, 1),
        (1000, "empty-rows", h, (64, 64), 1, 2, 128, 2),
        (1000, "gate", b, (64, 64), 8, 1, 64, 1),
        (1000, "random", b, (128, 64), 4, 1, 128, 1),
        (1000, "full", b, (128, 128), 4, 1, 64, 1),
        (4095, "gate", b, (128, 128), 2, 1, 128, 1),
        # Many items a program: 32 heads of 16 (128) or 32 (64) rows on 132 or 264 programs.
        (2000, "random", b, (128, 128), 4, 8, 128, 1),
        (2000, "empty-rows", b, (128, 128), 4, 8, 128, 1),
        (2000, "diagonal", b, (128, 128), 4, 8, 128, 1),
        (2000, "one-far-block", b, (128, 64), 4, 8, 128, 1),
        (2000, "random", b, (64, 64), 4, 8, 128, 1),
        (2000, "no-diagonal", h, (64, 64), 4, 8, 128, 1),
    ]
    same = True
    for n, kind, dtype, blocks, group, kv_heads, head_dim, batch in cases:
        print(n, kind, dtype, blocks, group, kv_heads, head_dim, batch, flush=True)
        q, k, v = draw(n, group * kv_heads, kv_heads, head_dim, dtype, "cuda", batch)
        mask = build_mask(kind, n, batch, group * kv_heads, *blocks, "cuda")
        runs = []
        for _ in range(3):
            o, lse = torch.full_like(q, torch.nan), torch.full(q.shape[:3], torch.nan, device="cuda")
            module.launch(q, k, v, mask, o, lse)
            torch.cuda.synchronize()
            runs.append((o, lse))
        for o, lse in (runs[0], runs[-1]):
            check_attention(q, k, v, mask, o, lse)
        same &= all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))
    print("passed;", "the same bits every time" if same else "other bits in other runs", flush=True)


def check_all(names, repo, at_once, timeout, stall):
    """{name: what its check said last}, survivors.

    A check may take `timeout` seconds from its own start, and `stall` for a line of its log, that is for a case.
    """
    said, survivors, running, waiting, texts = {}, [], {}, list(names), {}
    while waiting or running:
        while waiting and len(running) < at_once:
            name = waiting.pop(0)
            command = [sys.executable, __file__, "--check", name, "--repo", repo]
            texts[name] = (HERE / f"check_{name}.log").open("w")
            running[name] = (
                subprocess.Popen(command, stdout=texts[name], stderr=subprocess.STDOUT),
                time.monotonic(),
            )
        for name, (process, began) in list(running.items()):
            silent = time.time() - (HERE / f"check_{name}.log").stat().st_mtime
            late = time.monotonic() - began > timeout or silent > stall
            if process.poll() is None and not late:
                continue
            if process.poll() is None:
                process.kill()
                process.wait()
            del running[name]
            texts[name].close()
            lines = (HERE / f"check_{name}.log").read_text().strip().splitlines() or ["nothing printed"]
            ok = process.returncode == 0
            why = "hangs or too slow" if late else f"exit {process.returncode}"
            said[name] = lines[-1] if ok else f"DROPPED ({why}): {lines[-1][:300]}"
            print(f"check {name} ({time.monotonic() - began:.0f} s): {said[name]}", flush=True)
            if not ok:
                print("\n".join("    " + line[:200] for line in lines[-12:]), flush=True)
            else:
                survivors.append(name)
        time.sleep(0.1)
    return said, [name for name in names if name in survivors]


def fa4(block, mask):
    """FA-4's block-sparse kernel on this mask, or None where it is not installed."""
    from seerbench.attention import Case
    from seerbench.baselines.flash4 import FlashAttention4Sparse

    method = FlashAttention4Sparse()
    why = method.refuses(Case("cuda", "bfloat16", 1, 32, 8, 128, mask.tokens, block, block))
    if why:
        print(f"    fa4 skipped: {why}", flush=True)
        return None
    layout = method.layout(mask)
    return lambda q, k, v: method.attend(q, k, v, layout)


def inputs(context):
    return [torch.randn(1, heads, context, 128, device="cuda").bfloat16() for heads in (32, 8, 8)]


def mask_of(context, block, sparsity, gate):
    from ladder import gate_mask, random_mask

    return gate_mask(context, 32, block, sparsity) if gate else random_mask(context, 32, block, block, sparsity)


def time_case(names, case):
    """{method: [ms a round]}, kept FLOP and how far each variant is from the landed kernel's output."""
    from ladder import SDPBackend, measure, sdpa

    context, block, sparsity, gate, rounds, _ = case
    q, k, v = inputs(context)
    mask = mask_of(context, block, sparsity, gate)
    methods = {"fa2": lambda: sdpa(q, k, v, SDPBackend.FLASH_ATTENTION)}
    outputs = {}
    for name in ["landed", *names]:
        outputs[name] = (torch.empty_like(q), torch.empty(q.shape[:3], device="cuda"))
        launch = load(name).launch
        methods[name] = lambda launch=launch, out=outputs[name]: launch(q, k, v, mask, *out)
    upstream = fa4(block, mask)
    if upstream:
        methods["fa4"] = lambda: upstream(q, k, v)
    times = measure(methods, rounds)
    o, _ = outputs["landed"]
    apart = {name: (outputs[name][0].float() - o.float()).abs().max().item() for name in names}
    return times, mask.flops(128), apart


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", help="JSON to write")
    parser.add_argument("--budget", type=float, default=150, help="seconds for everything")
    parser.add_argument("--repo", default=".", help="the repository, for tests/gpu")
    parser.add_argument("--variants", nargs="+", default=[v for v in VARIANTS if v != "scan"], choices=VARIANTS)
    parser.add_argument("--at-once", type=int, default=6, help="checks that run side by side")
    parser.add_argument("--check-timeout", type=float, default=60, help="seconds for all cases of a check")
    parser.add_argument("--stall", type=float, default=25, help="seconds for one case, compilation included")
    parser.add_argument("--no-check", action="store_true", help="time at once; what hangs then hangs this")
    parser.add_argument("--check", choices=["landed", *VARIANTS], help="only check this one, in this process")
    parser.add_argument("--profile", choices=["landed", "fa4", *VARIANTS], help="only launch this once: for ncu.sh")
    args = parser.parse_args()
    use_repo(args.repo)
    if args.check:
        return check(args.check)
    if args.profile:
        return profile(args.profile)
    if not args.out:
        parser.error("give the path of the JSON to write")
    began = time.monotonic()
    torch.manual_seed(0)
    print(torch.cuda.get_device_name(), torch.__version__, "variants", *args.variants, flush=True)
    result = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cases": []}
    names = args.variants
    if not args.no_check:
        result["checks"], names = check_all(names, args.repo, args.at_once, args.check_timeout, args.stall)
    for case in CASES:
        left = args.budget - (time.monotonic() - began)
        context, block, sparsity, gate, _, needs = case
        title = f"{context} {block}x{block} {'gate-shaped' if gate else 'random'} {sparsity}"
        if left < needs:
            print(f"{title}: left out, {left:.0f} s left", flush=True)
            continue
        start = time.monotonic()
        times, flops, apart = time_case(names, case)
        print(f"{title}  ({time.monotonic() - start:.1f} s, at {time.monotonic() - began:.0f} s)")
        for name, t in times.items():
            over = {
                ref: statistics.median(r / x for r, x in zip(times[ref], t, strict=True))
                for ref in ("fa2", "landed", "fa4") if ref in times
            }  # fmt: skip
            rate = flops / statistics.median(t) / 1e9 if name != "fa2" else float("nan")
            ratios = "  ".join(f"{ref} {x:7.3f}x" for ref, x in over.items())
            print(f"    {name:14s} {statistics.median(t):9.3f} ms  {rate:5.0f} TFLOP/s  {ratios}", flush=True)
            if apart.get(name, 0) > 0.1:
                print(f"    {name} is {apart[name]} from the landed kernel's output", flush=True)
        result["cases"].append({"case": title, "ms": times, "flops": flops, "apart": apart})
        Path(args.out).write_text(json.dumps(result))
        torch.cuda.empty_cache()


def profile(name):
    """32k, 128x128, 90%: three launches of one kernel."""
    q, k, v = inputs(32768)
    mask = mask_of(32768, 128, 0.9, False)
    if name == "fa4":
        upstream = fa4(128, mask)
        if upstream is None:
            raise SystemExit("no FlashAttention-4 to profile")
        run = lambda: upstream(q, k, v)  # noqa: E731
    else:
        out = torch.empty_like(q), torch.empty(q.shape[:3], device="cuda")
        run = lambda: load(name).launch(q, k, v, mask, *out)  # noqa: E731
    for _ in range(3):
        run()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
