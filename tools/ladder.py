"""Time the kernels beside FlashAttention-2 (PyTorch SDPA), cuDNN and FlexAttention on this GPU.

    PYTHONPATH=. python tools/ladder.py sparse --context 32768 --sparsity 0 0.5 0.9 --block 64x64 128x128

All methods of a case run interleaved in shuffled order, timed by CUDA events, L2 flushed before each and
the host's launch hidden behind a sleep. Printed: medians over the rounds, the ratio to FA-2 in the same
rounds, TFLOP/s over kept blocks.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.core.rope import plain_rope
from seerbench.kernels.block_sparse.api import block_sparse_attention_with_lse


def sdpa(q, k, v, backend):
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def random_mask(context, heads, block_q, block_k, sparsity):
    """Each causal block kept with chance 1 - sparsity, per head; the diagonal always."""
    rows, columns = block_count(context, block_q), block_count(context, block_k)
    kept = torch.rand(1, heads, rows, columns, device="cuda") < 1 - sparsity
    i = torch.arange(rows, device="cuda")[:, None]
    kept |= torch.arange(columns, device="cuda")[None] == (i * block_q + block_q - 1) // block_k
    return BlockMask.from_dense(kept, context, block_q, block_k)


def gate_mask(context, heads, block, sparsity):
    """Gate-shaped: top-k blocks of smooth scores (sinks, a local band, columns that many rows want)."""
    n = block_count(context, block)
    i = torch.arange(n, device="cuda")
    columns = torch.randn(1, heads, 1, n, device="cuda") * 2
    near = -(i[:, None] - i[None]).abs().float().log1p()
    scores = columns + near + torch.randn(1, heads, n, n, device="cuda") * 0.5
    scores = scores.masked_fill(i[None] > i[:, None], -torch.inf)
    k = max(1, int((1 - sparsity**0.5) * n))
    top = scores.topk(min(k, n), -1).indices
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, top, True)
    return BlockMask.from_dense(kept, context, block, block)


def a_mask(args, context, block_q, block_k, sparsity):
    if args.gate:
        return gate_mask(context, args.heads, block_q, sparsity)
    return random_mask(context, args.heads, block_q, block_k, sparsity)


def measure(methods, rounds, show_host=False):
    """Time functions by name: {name: [ms per round]}. One that fails is reported and left out."""
    flush = torch.empty(2**28, dtype=torch.int8, device="cuda")
    times, alive = {name: [] for name in methods}, {}
    for name, function in methods.items():
        try:
            function()
            torch.cuda.synchronize()
            alive[name] = function
        except Exception as error:  # reported, not replaced
            print(f"    {name}: {type(error).__name__}: {str(error)[:300]}")
    for _ in range(rounds):
        order = list(alive)
        random.shuffle(order)
        for name in order:
            flush.zero_()
            torch.cuda._sleep(1_000_000)  # half a millisecond, so that the host's launch is not in the time
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            alive[name]()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end))
    if show_host:
        for name in alive:
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(20):
                alive[name]()
            print(f"    host {name}: {(time.perf_counter() - begin) / 20 * 1e6:.0f} us per launch")
    return {name: t for name, t in times.items() if t}


def report(title, times, flops=None, reference="fa2"):
    print(title)
    for name, t in times.items():
        ratio = statistics.median(r / x for r, x in zip(times[reference], t, strict=True))
        rate = f"{flops[name] / statistics.median(t) / 1e9:6.0f} TFLOP/s" if flops and name in flops else ""
        print(f"    {name:24s} {statistics.median(t):9.3f} ms  {ratio:6.2f}x  {rate}", flush=True)


def sparse(args):
    from seerbench.kernels.block_sparse import api as portable
    from seerbench.kernels.block_sparse import hopper
    from seerbench.kernels.block_sparse import triton as block_sparse_triton
    from seerbench.kernels.flex_attention import flex_block_sparse

    for context in args.context:
        q, k, v = inputs(args, context)
        o, lse = torch.empty_like(q), torch.empty(q.shape[:3], device="cuda")
        for block in args.block:
            block_q, block_k = map(int, block.split("x"))
            for sparsity in args.sparsity:
                mask = a_mask(args, context, block_q, block_k, sparsity)
                methods = {
                    "fa2": lambda q=q, k=k, v=v: sdpa(q, k, v, SDPBackend.FLASH_ATTENTION),
                    "cudnn": lambda q=q, k=k, v=v: sdpa(q, k, v, SDPBackend.CUDNN_ATTENTION),
                    "hopper": lambda a=(q, k, v, mask, o, lse): hopper.launch(*a),
                }
                if (block_q, block_k) not in portable.HOPPER_BLOCKS:
                    del methods["hopper"]
                for tile in args.tile or [None]:
                    tile = tuple(map(int, tile.split(","))) if tile else None
                    methods[f"triton {tile or ''}"] = lambda a=(q, k, v, mask, o, lse, tile): (
                        block_sparse_triton.launch(*a)
                    )
                if args.flex:
                    methods["flex"] = lambda a=(q, k, v, mask): flex_block_sparse(*a)
                dense = 2 * context * context * args.dim * args.heads
                flops = {name: mask.flops(args.dim) for name in methods} | {"fa2": dense, "cudnn": dense}
                times = measure(methods, args.rounds, show_host=args.host)
                kind = "gate-shaped" if args.gate else "random"
                title = f"{context} {block} {kind} requested {sparsity} realised {1 - mask.density():.4f}"
                report(title, times, flops)


def pooled(args):
    from seerbench.kernels.pooled import api as pooled_api
    from seerbench.kernels.pooled import triton as pooled_triton
    from seerbench.measure.memory import peak_mib

    for context in args.context:
        q, k, v = inputs(args, context)
        full = pooled_triton.full_mask(1, args.heads, context, 128, q.device)
        methods = {
            "fa2": lambda q=q, k=k, v=v: sdpa(q, k, v, SDPBackend.FLASH_ATTENTION),
            "cudnn": lambda q=q, k=k, v=v: sdpa(q, k, v, SDPBackend.CUDNN_ATTENTION),
            "forward alone": lambda q=q, k=k, v=v, m=full: block_sparse_attention_with_lse(q, k, v, m),
        }
        case = AttentionProblem("cuda", "bfloat16", 1, args.heads, args.kv, args.dim, context)
        name = pooled_api.implementation(case)
        for block in (64, 128):
            methods[f"{name} {block}"] = lambda a=(q, k, v, block): pooled_api.pooled_attention(*a)
            if name != "triton-two-pass":
                methods[f"two passes {block}"] = lambda a=(q, k, v, block): pooled_triton.two_passes(*a)
        times = measure(methods, args.rounds)
        report(f"{context} pooled map", times)
        for method, call in methods.items():
            if method in times:
                share = statistics.median(x / r for r, x in zip(times["fa2"], times[method], strict=True))
                print(
                    f"    {method:24s} {share:6.3f} of FA-2's time, {peak_mib(call, 'cuda'):7.1f} MiB at its peak"
                )


@torch.no_grad()
def gate_plan(args):
    from seerbench.core.top_k import top_k_count
    from seerbench.kernels.attn_gate import pool as attn_gate_pool
    from seerbench.kernels.attn_gate import score as attn_gate_score
    from seerbench.kernels.attn_gate import select as attn_gate_select
    from seerbench.methods import block_selection, gate, gate_config

    for context in args.context:
        q, k, v = inputs(args, context)
        n = block_count(context, 64)
        pq, pk = attn_gate_pool.pool_blocks(q, 64)["avg"], attn_gate_pool.pool_blocks(k, 64)["max"]
        scores = attn_gate_score.block_scores(pq, pk)
        top = top_k_count(n, 0.9)

        def plan(q=q, k=k, context=context, top=top):
            pooled_q = attn_gate_pool.pool_blocks(q, 64, ["avg"])["avg"]
            pooled_k = attn_gate_pool.pool_blocks(k, 64, ["max", "min"])["max"]
            return attn_gate_select.select_top_k(attn_gate_score.block_scores(pooled_q, pooled_k), top, context, 64)

        one = gate.AttnGate(gate_config.GateConfig(), args.heads, args.kv, args.dim).cuda().bfloat16()
        layer = LayerContext(q_unrotated=q, k_unrotated=k, rope=plain_rope(args.dim))
        methods = {
            "fa2": lambda q=q, k=k, v=v: sdpa(q, k, v, SDPBackend.FLASH_ATTENTION),
            "plan, no linears or RoPE": plan,
            "plan, all of it": lambda q=q, k=k, o=one, y=layer, c=context: block_selection.select_top_k(
                gate.gate_scores(o, q, k, y), 0.9, c, 64
            ),
            "  pool Q": lambda q=q: attn_gate_pool.pool_blocks(q, 64, ["avg"]),
            "  pool K": lambda k=k: attn_gate_pool.pool_blocks(k, 64, ["max", "min"]),
            "  score": lambda q=pq, k=pk: attn_gate_score.block_scores(q, k),
            "  top-k": lambda s=scores, t=top, c=context: attn_gate_select.select_top_k(s, t, c, 64),
        }
        report(f"{context} gate", measure(methods, args.rounds))


def tiles(args):
    """MInference's kernel on synthetic selections of its official (512, 2048), beside FA-2."""
    from seerbench.kernels.vertical_slash import api as vertical_slash

    for context in args.context:
        q, k, v = inputs(args, context)
        for kind in ("near", "scattered"):
            columns = torch.rand(1, args.heads, context, device="cuda") < 512 / context
            diagonals = torch.rand(1, args.heads, context, device="cuda") < 2048 / context
            if kind == "near":
                diagonals = (torch.arange(context, device="cuda") < 2048).expand_as(diagonals).clone()
            diagonals[..., 0] = True
            mask = vertical_slash.vertical_slash_tiles(columns, diagonals)
            methods = {
                "fa2": lambda q=q, k=k, v=v: sdpa(q, k, v, SDPBackend.FLASH_ATTENTION),
                "cudnn": lambda q=q, k=k, v=v: sdpa(q, k, v, SDPBackend.CUDNN_ATTENTION),
                "tiles": lambda a=(q, k, v, mask): vertical_slash.tile_attention(*a),
                "  conversion": lambda a=(columns, diagonals): vertical_slash.vertical_slash_tiles(*a),
            }
            dense = 2 * context * context * args.dim * args.heads
            flops = {"fa2": dense, "cudnn": dense, "tiles": mask.flops(args.dim)}
            title = f"{context} (512, 2048) {kind}: sparsity in tiles {1 - mask.density():.4f}"
            report(title, measure(methods, args.rounds), flops)


def backward(args):
    """Time dQ, dK and dV. Rates count five products per tile, as FlashAttention-2 needs, for our seven too."""
    from seerbench.kernels.block_sparse import triton_backward as ours

    for context in args.context:
        q, k, v = inputs(args, context)
        do = torch.randn_like(q)
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        dense_o = sdpa(*leaves, SDPBackend.FLASH_ATTENTION)
        grads = [torch.empty_like(x) for x in (q, k, v)]
        for block in args.block:
            block_q, block_k = map(int, block.split("x"))
            for sparsity in args.sparsity:
                mask = a_mask(args, context, block_q, block_k, sparsity)
                o, lse = block_sparse_attention_with_lse(q, k, v, mask)
                lists, delta = mask.transposed(args.kv), torch.randn_like(lse)
                saved = (q, k, v, o, lse, do, mask)
                methods = {
                    "fa2": lambda a=(dense_o, leaves, do): torch.autograd.grad(*a, retain_graph=True),
                    "ours": lambda a=(*saved, *grads): ours.launch(*a),
                    "  transposed lists": lambda m=mask: m.transposed(args.kv),
                }
                for tile in args.tile or [None]:
                    tile = tuple(map(int, tile.split(","))) if tile else None
                    methods[f"  dQ {tile or ''}"] = lambda a=(*saved, delta, grads[0], tile): (
                        ours.launch_query_gradient(*a)
                    )
                    methods[f"  dK, dV {tile or ''}"] = lambda a=(
                        q, k, v, lse, do, delta, mask, *grads[1:], tile, lists,
                    ): ours.launch_key_gradients(*a)  # fmt: skip
                dense = 5 * context * context * args.dim * args.heads
                flops = {"fa2": dense, "ours": 2.5 * mask.flops(args.dim)}
                kind = "gate-shaped" if args.gate else "random"
                title = f"{context} {block} {kind} requested {sparsity} realised {1 - mask.density():.4f}: backward"
                report(title, measure(methods, args.rounds, show_host=args.host), flops)


def inputs(args, context):
    shapes = ((1, heads, context, args.dim) for heads in (args.heads, args.kv, args.kv))
    return [torch.randn(shape, device="cuda").bfloat16() for shape in shapes]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["sparse", "backward", "pooled", "gate", "tiles"])
    parser.add_argument("--context", type=int, nargs="+", default=[32768])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9])
    parser.add_argument("--block", nargs="+", default=["64x64", "128x128"])
    parser.add_argument("--tile", nargs="*", help="rows,keys,warps,stages of the portable kernel")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv", type=int, default=8)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--gate", action="store_true")
    parser.add_argument("--flex", action="store_true")
    parser.add_argument("--host", action="store_true", help="also time the launch on the host")
    args = parser.parse_args()
    torch.manual_seed(0)
    print(torch.cuda.get_device_name(), torch.__version__)
    modes = {"sparse": sparse, "backward": backward, "pooled": pooled, "gate": gate_plan, "tiles": tiles}
    modes[args.what](args)


if __name__ == "__main__":
    main()
