"""Trial of the gate's new plan against the old one, on a GPU. Removed when the branch lands.

python trial_plan/trial.py OUT.json --budget 70    (PYTHONPATH: the repository's root)
"""

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from old import attn_gate as before

from seerbench import gate
from seerbench.attention import Layer, assert_no_worse_than_rounding, block_count
from seerbench.kernels import attn_gate as now
from seerbench.latency import plain_rope
from seerbench.seer import SeerAttention
from seerbench.timing import FLUSH_BYTES, PAUSE_CYCLES

START = time.perf_counter()
FOUND = {"checks": [], "times": []}


def say(*what):
    print(f"[{time.perf_counter() - START:5.1f}]", *what, flush=True)


def make(n, dtype, heads=32, kv=8, dim=128):
    g = torch.Generator("cuda").manual_seed(n)
    q, k = (torch.randn(1, h, n, dim, device="cuda", generator=g).to(dtype) for h in (heads, kv))
    one = gate.AttnGate(gate.GateConfig(), heads, kv, dim).cuda().to(dtype).requires_grad_(False)
    return one, q, k, Layer(0, q, k, plain_rope(dim))


def old_scores(one, q, k, rope):
    starts = torch.arange(block_count(q.shape[2], 64), device=q.device) * 64
    tables = rope(starts)
    pq = before.project(before.pool_side_by_side(q, 64, ["avg"]), one.wq, tables)
    pk = before.project(before.pool_side_by_side(k, 64, ["max", "min"]), one.wk, tables)
    return before.block_scores(pq, pk)


def new_scores(one, q, k, layer, pool_warps=now.POOL_WARPS, tile=now.SCORE_TILE, whole=False):
    tables = layer.rope(gate.block_starts(block_count(q.shape[2], 64), 64, q.device))
    pools = now.pool_side_by_side([(q, ["avg"]), (k, ["max", "min"])], 64, pool_warps)
    return now.block_scores(*now.project(list(zip(pools, (one.wq, one.wk), strict=True)), tables), whole, tile)


def same(a, b, what):
    counts = torch.equal(a.kv_num_blocks.cpu(), b.kv_num_blocks.cpu())
    width = b.kv_indices.shape[-1]  # from_dense: as wide as the longest row
    wide = a.kv_indices.cpu()
    good = counts and torch.equal(wide[..., :width], b.kv_indices.cpu()) and not wide[..., width:].any()
    FOUND["checks"].append({"what": what, "good": bool(good)})
    if not good:
        say("WRONG", what)
    return good


def poison():
    """Leave NaN and junk in what the allocator hands out next."""
    junk = [torch.full((m,), float("nan"), device="cuda") for m in (2**12, 2**16, 2**20, 2**24, 2**26)]
    torch.cuda.synchronize()
    del junk


def check():
    for dtype in (torch.bfloat16, torch.float16):
        for n in (1, 63, 65, 1000, 4095, 8192):
            one, q, k, layer = make(n, dtype, 8, 2)
            poison()
            whole = gate.gate_scores(one, q, k, layer)
            poison()
            half = gate.gate_scores(one, q, k, layer, whole=False)
            rounded = one(gate.pool_blocks(q, 64), gate.pool_blocks(k, 64), layer.rope)
            exact = one.double()(gate.pool_blocks(q.double(), 64), gate.pool_blocks(k.double(), 64), layer.rope)
            blocks = whole.shape[-1]
            tril = torch.ones(blocks, blocks, device="cuda").tril().bool()
            try:
                assert_no_worse_than_rounding(whole, exact, rounded)
                assert torch.equal(whole[..., tril], half[..., tril]), "half scores differ"
                error = None
            except AssertionError as wrong:
                error = str(wrong)
                say("WRONG scores", n, dtype, error)
            FOUND["checks"].append({"what": f"scores {n} {dtype}", "good": error is None, "error": error})
            for sparsity in (0.0, 0.5, 0.9):
                for rows in (0, 2):
                    poison()
                    ours = gate.select_top_k(half, sparsity, n, 64, rows)
                    same(ours, gate.select_top_k(whole.cpu(), sparsity, n, 64, rows), f"{n} {sparsity} {rows}")
            poison()
            threshold = 1.5 / blocks
            p = whole.double().softmax(-1)
            if (p - threshold).abs().min() > 1e-7:
                ours = gate.select_threshold(half, threshold, n, 64, 2)
                same(ours, gate.select_threshold(whole.cpu(), threshold, n, 64, 2), f"threshold {n} {dtype}")
    for blocks in (300, 2048):
        for ties in (False, True, "wild"):
            scores = torch.randn(1, 1, blocks, blocks, device="cuda")
            scores = (scores * 2).round() / 2 if ties is True else scores
            scores = (scores * 25).exp() * scores.sign() if ties == "wild" else scores
            scores = scores.masked_fill(torch.ones(blocks, blocks, device="cuda").triu(1).bool(), -torch.inf)
            for sparsity in (0.5, 0.9):
                want = gate.select_top_k(scores.cpu(), sparsity, blocks * 64, 64)
                for options in ({}, {"per_warp": 1024}, {"quads": False}) if blocks == 2048 else ({},):
                    poison()
                    top = gate.top_k_count(blocks, sparsity)
                    ours = now.select_top_k(scores, top, blocks * 64, 64, **options)
                    same(ours, want, f"top-k of {blocks} ties={ties} {sparsity} {options}")
    bad = sum(not one["good"] for one in FOUND["checks"])
    say(f"checks: {len(FOUND['checks'])}, wrong: {bad}")


FLUSHED = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")


def timed(call, pause):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    FLUSHED.zero_()
    torch.cuda._sleep(pause)
    host = time.perf_counter()
    start.record()
    call()
    end.record()
    host = (time.perf_counter() - host) * 1e3
    end.synchronize()
    return start.elapsed_time(end), host


def measure(cell, calls, rounds, pause=PAUSE_CYCLES):
    """Median, least and most ms by CUDA events, interleaved; host: median ms that the launches took."""
    for call in calls.values():
        timed(call, pause)
    found, names = {name: [] for name in calls}, list(calls)
    for _ in range(rounds):
        random.shuffle(names)
        for name in names:
            found[name].append(timed(calls[name], pause))
    for name in calls:
        ms, host = zip(*found[name], strict=True)
        row = {"cell": cell, "what": name, "ms": statistics.median(ms), "min": min(ms), "max": max(ms),
               "host": statistics.median(host), "rounds": rounds, "pause": pause}  # fmt: skip
        FOUND["times"].append(row)
        spread = f"{row['min']:.3f} to {row['max']:.3f}"
        say(f"{cell:22s} {name:26s} {row['ms']:.3f} ms ({spread}), host {row['host']:.3f}")


def times(budget, out):
    for context in (131072, 32768, 8192):
        rounds = 9 if context > 100000 else 15
        one, q, k, layer = make(context, torch.bfloat16)
        uncached = plain_rope(128).__wrapped__
        half, whole = new_scores(one, q, k, layer), old_scores(one, q, k, uncached)
        tables = layer.rope(gate.block_starts(block_count(context, 64), 64, q.device))
        operators = [(q, ["avg"]), (k, ["max", "min"])]
        pools = now.pool_side_by_side(operators, 64)
        layers = list(zip(pools, (one.wq, one.wk), strict=True))
        projected = now.project(layers, tables)
        parts = {
            "old pool": lambda o=operators: [before.pool_side_by_side(x, 64, how) for x, how in o],
            **{f"new pool, {w} warps": lambda o=operators, w=w: now.pool_side_by_side(o, 64, w) for w in (1, 2, 4)},
            "old project": lambda a=layers, t=tables: [before.project(*x, t) for x in a],
            "new project": lambda a=layers, t=tables: now.project(a, t),
            "old score": lambda p=projected: before.block_scores(*p),
            "new score, whole": lambda p=projected: now.block_scores(*p),
            "new score, tile 64": lambda p=projected: now.block_scores(*p, False, 64),
            "new score, tile 128": lambda p=projected: now.block_scores(*p, False, 128),
            "old scores, all": lambda a=(one, q, k, uncached): old_scores(*a),
            "new scores, all": lambda a=(one, q, k, layer): new_scores(*a),
        }
        measure(f"{context} parts", parts, rounds)
        for sparsity in (0.9, 0.5, 0.0, 0.7, 0.95):
            if time.perf_counter() - START > budget - 3:
                say("budget used up before", context, sparsity)
                return
            top = gate.top_k_count(half.shape[-1], sparsity)
            seer = SeerAttention([one], sparsity)
            select = {
                "old select": lambda s=whole, t=top, c=context: before.select_top_k(s, t, c, 64),
                "new select": lambda s=half, t=top, c=context: now.select_top_k(s, t, c, 64),
                "new select, 1024 a warp": lambda s=half, t=top, c=context: now.select_top_k(
                    s, t, c, 64, per_warp=1024
                ),
                "new select, no quads": lambda s=half, t=top, c=context: now.select_top_k(s, t, c, 64, quads=False),
            }
            plans = {
                "old plan": lambda a=(one, q, k, uncached), t=top, c=context: before.select_top_k(
                    old_scores(*a), t, c, 64
                ),
                "new plan": lambda m=seer, a=(q, k, layer): m.plan(*a),
            }
            measure(f"{context} {sparsity}", select | plans, rounds)
            measure(f"{context} {sparsity} GPU alone", plans, 5, 6 * PAUSE_CYCLES)
            out.write_text(json.dumps(FOUND, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--budget", type=float, default=70)
    args = parser.parse_args()
    say(torch.cuda.get_device_name(), torch.__version__)
    FOUND["device"] = torch.cuda.get_device_name()
    with torch.no_grad():
        check()
        args.out.write_text(json.dumps(FOUND, indent=1))
        times(args.budget, args.out)
    args.out.write_text(json.dumps(FOUND, indent=1))
    say("done")
