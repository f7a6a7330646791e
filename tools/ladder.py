"""Time the kernels beside FlashAttention-2 (PyTorch SDPA), cuDNN and FlexAttention on this GPU.

    python tools/ladder.py sparse --context 32768 --sparsity 0 0.5 0.9 --block 64x64 128x128

All methods of a case are timed in the same rounds by seerbench.measure.sampler, on inputs and masks of
seerbench.measure.inputs. Printed: medians over the rounds, the median ratio to FA-2 of the same rounds, and TFLOP/s
over kept blocks.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from masks import block_mask
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from seerbench.core.block_mask import block_count
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.core.rope import plain_rope
from seerbench.kernels.block_sparse.api import block_sparse_attention_with_lse
from seerbench.measure.inputs import MASK_KINDS, random_inputs
from seerbench.measure.sampler import Candidate, Timing, sample, timer_for


def sdpa(q, k, v, backend):
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def problem_of(args, context, block_q=64, block_k=64):
    """Return the problem of the command line's shape at one context."""
    return AttentionProblem("cuda", "bfloat16", 1, args.heads, args.kv, args.dim, context, block_q, block_k)


def measure(methods, rounds, show_host=False):
    """Time functions and return {name: [ms per round]}. A function that fails is reported and left out."""
    working = {}
    for name, function in methods.items():
        try:
            function()
            torch.cuda.synchronize()
            working[name] = function
        except Exception as error:  # a failure is reported, and no other kernel replaces this one
            print(f"    {name}: {type(error).__name__}: {str(error)[:300]}")
    candidates = {name: Candidate({"call": function}) for name, function in working.items()}
    times = {name: [] for name in working}
    for one in sample(candidates, Timing(rounds=rounds, min_rounds=rounds), timer_for("cuda")):
        times[one.method].append(one.ms)
    if show_host:
        for name, function in working.items():
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(20):
                function()
            print(f"    host {name}: {(time.perf_counter() - begin) / 20 * 1e6:.0f} us per launch")
    return times


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
                mask = block_mask(problem_of(args, context, block_q, block_k), q, k, sparsity, args.mask)
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
                kind = args.mask
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
    """Time MInference's kernel beside FA-2, on selections of about 512 columns and 2048 diagonals."""
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
    """Time dQ, dK and dV. Rates count five products per tile, as in FlashAttention-2; our kernels compute seven."""
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
                mask = block_mask(problem_of(args, context, block_q, block_k), q, k, sparsity, args.mask)
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
                kind = args.mask
                title = f"{context} {block} {kind} requested {sparsity} realised {1 - mask.density():.4f}: backward"
                report(title, measure(methods, args.rounds, show_host=args.host), flops)


def inputs(args, context):
    """Return q, k and v of the command line's shape."""
    return random_inputs(problem_of(args, context), seed=0)


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
    parser.add_argument("--mask", choices=list(MASK_KINDS), default="random")
    parser.add_argument("--flex", action="store_true")
    parser.add_argument("--host", action="store_true", help="also time the launch on the host")
    args = parser.parse_args()
    print(torch.cuda.get_device_name(), torch.__version__)
    modes = {"sparse": sparse, "backward": backward, "pooled": pooled, "gate": gate_plan, "tiles": tiles}
    modes[args.what](args)


if __name__ == "__main__":
    main()
