"""Compare the kernels of this tree with those of another commit: are the bits equal, and the times?

    python tools/compare_trees.py --base 74b2218 --out rows.csv
    python tools/compare_trees.py --base-folder /tmp/old       (an exported copy, where there is no git)
    python tools/compare_trees.py --base 74b2218 --tiny        (on a CPU, in Triton's interpreter: bits only)

Both trees are loaded into one process, the other one under a package name of its own. Every kernel of both gets the
same tensors. Then (a) all outputs are compared bit by bit and (b) both are timed in the same rounds by
seerbench.measure.sampler. It prints for each kernel whether the bits are equal, and the median over rounds of the
ratio new time / old time with its bootstrap 95% interval. Exit status 1: bits differ, or an interval lies outside
[0.98, 1.02] as a whole.

A base commit may have this tree's layout or that of 74b2218 (`OLD_PLACES` maps the names).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import importlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

if "--tiny" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported

import torch
from masks import block_mask
from torch import Tensor

from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.problem import AttentionProblem
from seerbench.core.rope import plain_rope
from seerbench.measure.inputs import random_inputs
from seerbench.measure.sampler import Candidate, Timing, sample, timer_for
from seerbench.rows.bootstrap import paired_speedup

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 0.02  # largest change of a time that counts as none
FOLDERS = ("seerbench", "kernels", "baselines")
# module:name below seerbench -> the same at 74b2218
OLD_PLACES = {
    "core.block_mask:BlockMask": "attention:BlockMask",
    "kernels.block_sparse.api:block_sparse_attention_with_lse": (
        "kernels.block_sparse_attention:block_sparse_attention_with_lse"
    ),
    "kernels.block_sparse.triton:launch": "kernels.block_sparse_attention:launch",
    "kernels.block_sparse.triton_backward:gradients": "kernels.block_sparse_backward:gradients",
    "kernels.pooled.api:pooled_attention": "kernels.pooled_attention:pooled_attention",
    "kernels.pooled.triton:two_passes": "kernels.pooled_attention:two_passes",
    "kernels.attn_gate.pool:pool_side_by_side": "kernels.attn_gate:pool_side_by_side",
    "kernels.attn_gate.project:project": "kernels.attn_gate:project",
    "kernels.attn_gate.score:block_scores": "kernels.attn_gate:block_scores",
    "kernels.attn_gate.select:select_top_k": "kernels.attn_gate:select_top_k",
    "kernels.attn_gate.select:select_threshold": "kernels.attn_gate:select_threshold",
    "kernels.index_lists:ascending_lists": "kernels.lists:ascending_lists",
    "kernels.vertical_slash.convert:scan": "kernels.vertical_slash:_scan_on_gpu",
    "kernels.vertical_slash.convert:tiles_of": "kernels.vertical_slash:_convert_on_gpu",
    "kernels.vertical_slash.triton:launch": "kernels.vertical_slash:launch",
    "kernels.antidiagonal_mass.triton:antidiagonal_mass": "kernels.antidiagonal_mass:antidiagonal_mass",
    "kernels.pooled_scores.triton:pooled_scores": "kernels.pooled_scores:log_sums",
}


class Tree(NamedTuple):
    """Kernels of one tree, found by their names in this tree: `tree.get("kernels.index_lists:ascending_lists")`."""

    package: str

    def get(self, name: str) -> Any:
        """Return a function or class of the tree, from this tree's place or from that of 74b2218."""
        for place in (name, OLD_PLACES[name]):
            module, attribute = place.split(":")
            try:
                return getattr(importlib.import_module(f"{self.package}.{module}"), attribute)
            except (ModuleNotFoundError, AttributeError) as error:
                last = error
        raise last

    def mask(self, mask: BlockMask) -> Any:
        """Return a BlockMask of this tree's class with the lists of `mask`."""
        lists = (mask.kv_num_blocks, mask.kv_indices, mask.tokens, mask.block_q, mask.block_k)
        return self.get("core.block_mask:BlockMask")(*lists)


class Case(NamedTuple):
    """A kernel on one input: a function of the tree that makes the call to compare and time."""

    kernel: str
    shape: str
    call: Callable[[Tree], Callable[[], Any]]


def load_base(base: str | None, folder: Path | None, place: Path) -> Tree:
    """Copy the other tree to `place` under the package name seerbench_base, and return it."""
    if folder is None:
        archive = subprocess.run(
            ["git", "archive", "--format=tar", base, *FOLDERS], cwd=ROOT, capture_output=True, check=True
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(place, filter="data")
    else:
        for name in FOLDERS:
            shutil.copytree(folder / name, place / name, symlinks=True)
    package = place / "seerbench_base"
    (place / "seerbench").rename(package)
    for name in FOLDERS[1:]:
        link = package / name
        if link.is_symlink():
            link.unlink()
        elif link.exists():  # the exported copy has a folder in place of the link
            shutil.rmtree(link)
        (place / name).rename(link)
    for path in package.rglob("*.py"):
        renamed = re.sub(
            r"(?m)^(\s*(?:from|import) )seerbench\b", r"\1seerbench_base", path.read_text(encoding="utf-8")
        )
        path.write_text(renamed, encoding="utf-8")
    sys.path.insert(0, str(place))
    return Tree("seerbench_base")


def outputs_of(result: Any) -> Iterator[Tensor]:
    """Yield the tensors in a result: a tensor, a mask, or a list or tuple of them."""
    if isinstance(result, Tensor):
        yield result
    elif dataclasses.is_dataclass(result):
        yield from outputs_of([getattr(result, field.name) for field in dataclasses.fields(result)])
    elif isinstance(result, (list, tuple)):
        for part in result:
            yield from outputs_of(part)


def same_bits(new: Any, old: Any) -> bool:
    """Return whether two results have equal tensors."""
    pairs = list(zip(outputs_of(new), outputs_of(old), strict=True))
    return bool(pairs) and all(torch.equal(a, b) for a, b in pairs)


def attention_cases(problem: AttentionProblem, sparsity: float, portable: bool, gradients: bool) -> Iterator[Case]:
    """Yield the block-sparse kernels on one mask."""
    q, k, v = random_inputs(problem, seed=0)
    mask = block_mask(problem, q, k, sparsity)
    shape = f"{problem.context} {problem.block_q}x{problem.block_k} {sparsity:.0%}"

    def forward(tree: Tree) -> Callable[[], Any]:
        run, own = tree.get("kernels.block_sparse.api:block_sparse_attention_with_lse"), tree.mask(mask)
        return lambda: run(q, k, v, own)

    def triton(tree: Tree) -> Callable[[], Any]:
        launch, own = tree.get("kernels.block_sparse.triton:launch"), tree.mask(mask)
        o, lse = torch.empty_like(q), torch.empty(q.shape[:3], device=q.device)

        def run() -> Any:
            launch(q, k, v, own, o, lse)
            return o, lse

        return run

    def backward(tree: Tree) -> Callable[[], Any]:
        run, own = tree.get("kernels.block_sparse.triton_backward:gradients"), tree.mask(mask)
        o, lse = forward(tree)()
        do = torch.ones_like(q) * 0.5 + q
        return lambda: run(q, k, v, o, lse, do, own)

    yield Case("block-sparse forward", shape, forward)
    if portable:
        yield Case("block-sparse forward, portable", shape, triton)
    if gradients:
        yield Case("block-sparse backward", shape, backward)


def pooled_cases(problem: AttentionProblem, on_gpu: bool) -> Iterator[Case]:
    """Yield pooled attention: the kernel that the machine gets, and the portable one."""
    q, k, v = random_inputs(problem, seed=0)

    def call(name: str, block: int) -> Callable[[Tree], Callable[[], Any]]:
        def bind(tree: Tree) -> Callable[[], Any]:
            function = tree.get(name)
            return lambda: function(q, k, v, block)

        return bind

    for block in (64, 128):
        if on_gpu:
            yield Case("pooled", f"{problem.context} {block}", call("kernels.pooled.api:pooled_attention", block))
        portable = call("kernels.pooled.triton:two_passes", block)
        yield Case("pooled, portable", f"{problem.context} {block}", portable)


def gate_cases(problem: AttentionProblem) -> Iterator[Case]:
    """Yield AttnGate's kernels: pool, project, score, select."""
    q, k, _ = random_inputs(problem, seed=0)
    tokens, block, head_dim = problem.context, problem.block_k, problem.head_dim
    n, shape = block_count(tokens, block), str(tokens)
    here = Tree("seerbench")
    operators = [(q, ["avg"]), (k, ["max", "min", "avg"])]
    pools = here.get("kernels.attn_gate.pool:pool_side_by_side")(operators, block)
    generator = torch.Generator(q.device).manual_seed(2)
    weights = [
        torch.randn(x.shape[1], x.shape[3], head_dim, generator=generator, device=q.device).to(q.dtype) * 0.05
        for x in pools
    ]
    tables = plain_rope(head_dim)(torch.arange(n, device=q.device) * block)
    layers = list(zip(pools, weights, strict=True))
    projected = here.get("kernels.attn_gate.project:project")(layers, tables)
    scores = here.get("kernels.attn_gate.score:block_scores")(*projected)
    tied = (scores * 4).round()  # with many ties

    def call(name: str, *arguments: Any) -> Callable[[Tree], Callable[[], Any]]:
        def bind(tree: Tree) -> Callable[[], Any]:
            function = tree.get(name)
            return lambda: function(*arguments)

        return bind

    def lower(tree: Tree) -> Callable[[], Any]:
        function = tree.get("kernels.attn_gate.score:block_scores")
        return lambda: function(*projected, False).tril()  # undefined above the diagonal

    yield Case("gate pool", shape, call("kernels.attn_gate.pool:pool_side_by_side", operators, block))
    yield Case("gate project", shape, call("kernels.attn_gate.project:project", layers, tables))
    yield Case("gate score", shape, call("kernels.attn_gate.score:block_scores", *projected))
    yield Case("gate score and tril", shape, lower)
    for share in (0.5, 0.1):
        top = max(1, int(n * share))
        arguments = (top, tokens, block)
        yield Case(
            "gate top-k", f"{shape} k={top}", call("kernels.attn_gate.select:select_top_k", scores, *arguments)
        )
        yield Case(
            "gate top-k", f"{shape} k={top} ties", call("kernels.attn_gate.select:select_top_k", tied, *arguments)
        )
    yield Case(
        "gate threshold", shape, call("kernels.attn_gate.select:select_threshold", scores, 0.01, tokens, block)
    )
    flags = scores > 0
    yield Case("index lists", f"{shape} flags", call("kernels.index_lists:ascending_lists", flags))


def estimate_cases(problem: AttentionProblem, stride: int) -> Iterator[Case]:
    """Yield the estimators of the baselines."""
    q, k, _ = random_inputs(problem, seed=0)
    block, shape = problem.block_k, f"{problem.context} {problem.block_k}"
    mean = torch.stack([part.float().mean(2) for part in k.split(block, 2)], 2).to(k.dtype)

    def mass(tree: Tree) -> Callable[[], Any]:
        function = tree.get("kernels.antidiagonal_mass.triton:antidiagonal_mass")
        return lambda: function(q, k, block, stride)

    def scores(tree: Tree) -> Callable[[], Any]:
        function = tree.get("kernels.pooled_scores.triton:pooled_scores")
        return lambda: function(q, mean, block)

    yield Case("antidiagonal mass", shape, mass)
    yield Case("pooled scores", shape, scores)


def vertical_slash_cases(problem: AttentionProblem) -> Iterator[Case]:
    """Yield MInference's index conversion and attention."""
    q, k, v = random_inputs(problem, seed=0)
    tokens, tile = problem.context, 64
    generator = torch.Generator(q.device).manual_seed(3)
    columns, diagonals = (
        torch.rand(1, problem.q_heads, tokens, generator=generator, device=q.device) < chance
        for chance in (512 / max(tokens, 4096), 2048 / max(tokens, 16384))
    )
    diagonals[..., 0] = True
    n = block_count(tokens, tile)

    def convert(tree: Tree) -> Callable[[], Any]:
        scan, tiles_of = (
            tree.get("kernels.vertical_slash.convert:scan"),
            tree.get("kernels.vertical_slash.convert:tiles_of"),
        )
        return lambda: tiles_of(*scan(columns, diagonals), n, tokens, tile)

    def attend(tree: Tree) -> Callable[[], Any]:
        launch, mask, o = tree.get("kernels.vertical_slash.triton:launch"), convert(tree)(), torch.empty_like(q)

        def run() -> Tensor:
            launch(q, k, v, mask, o)
            return o

        return run

    yield Case("vertical-slash conversion", str(tokens), convert)
    yield Case("vertical-slash attention", str(tokens), attend)


def cases(tiny: bool) -> Iterator[Case]:
    """Yield every case, one input at a time: the paper's shape on a GPU, few tokens in the interpreter."""
    if tiny:
        small = AttentionProblem("cpu", "float16", 1, 2, 1, 16, 150, 64, 64)
        for blocks in ((64, 64), (128, 64), (128, 128)):
            problem = dataclasses.replace(small, block_q=blocks[0], block_k=blocks[1], context=256)
            yield from attention_cases(problem, 0.5, portable=True, gradients=True)
        yield from pooled_cases(small, on_gpu=False)
        yield from gate_cases(dataclasses.replace(small, context=1024))
        yield from estimate_cases(dataclasses.replace(small, block_q=32, block_k=32), stride=8)
        yield from vertical_slash_cases(small)
        return
    full = AttentionProblem("cuda", "bfloat16", 1, 32, 8, 128, 32768, 64, 64)
    for context in (32768, 131072):
        for blocks in ((64, 64), (128, 64), (128, 128)):
            problem = dataclasses.replace(full, block_q=blocks[0], block_k=blocks[1], context=context)
            for sparsity in (0.5, 0.9):
                portable = context == 32768 and sparsity == 0.9
                yield from attention_cases(problem, sparsity, portable, gradients=False)
    for blocks in ((64, 64), (128, 64), (128, 128)):
        problem = dataclasses.replace(full, block_q=blocks[0], block_k=blocks[1], context=8192)
        yield from attention_cases(problem, 0.0, portable=False, gradients=False)
        yield from attention_cases(problem, 0.9, portable=True, gradients=True)
    for context in (8192, 32768):
        yield from pooled_cases(dataclasses.replace(full, context=context), on_gpu=True)
    for context in (32768, 131072):
        yield from gate_cases(dataclasses.replace(full, context=context))
    for context, block in ((8192, 64), (32768, 128)):
        problem = dataclasses.replace(full, context=context, block_q=block, block_k=block)
        yield from estimate_cases(problem, stride=8)
    for context in (8192, 32768):
        yield from vertical_slash_cases(dataclasses.replace(full, context=context))


@torch.no_grad()
def main() -> int:
    """Compare all cases, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="74b2218", help="commit to compare with")
    parser.add_argument("--base-folder", type=Path, help="an exported tree in place of --base")
    parser.add_argument("--out", type=Path, help="CSV file of the table")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="", help="regular expression: the kernels to compare")
    parser.add_argument("--tiny", action="store_true", help="small shapes in Triton's interpreter, not timed")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("timings need a CUDA GPU; --tiny compares bits in Triton's interpreter")
    timer = None if options.tiny else timer_for("cuda")
    timing = Timing(rounds=options.rounds, min_rounds=options.rounds, warmup=3)
    rows, failed = [], False
    with tempfile.TemporaryDirectory(prefix="seerbench-base-") as place:
        trees = {"new": Tree("seerbench"), "old": load_base(options.base, options.base_folder, Path(place))}
        print(f"{'kernel':32} {'shape':24} {'bits':8} {'old ms':>9} {'new ms':>9}  new/old (95% interval)")
        for case in cases(options.tiny):
            if not re.search(options.only, case.kernel):
                continue
            calls = {name: case.call(tree) for name, tree in trees.items()}
            equal = same_bits(calls["new"](), calls["old"]())
            row = {"kernel": case.kernel, "shape": case.shape, "bits_equal": equal}
            text, verdict = "", "" if equal else "  BITS DIFFER"
            failed |= not equal
            if timer is not None:
                candidates = {name: Candidate({"call": call}) for name, call in calls.items()}
                ms: dict[str, list[float]] = {"new": [], "old": []}
                for one in sample(candidates, timing, timer):
                    ms[one.method].append(one.ms)
                ratio, low, high = paired_speedup(ms["new"], ms["old"])  # new over old, round by round
                medians = {name: sorted(values)[len(values) // 2] for name, values in ms.items()}
                outside = low > 1 + TOLERANCE or high < 1 - TOLERANCE
                failed |= outside
                verdict += "  TIME DIFFERS" if outside else ""
                row |= {"old_ms": medians["old"], "new_ms": medians["new"]}
                row |= {"ratio": ratio, "low": low, "high": high}
                text = f"{medians['old']:9.3f} {medians['new']:9.3f}  {ratio:.3f} ({low:.3f}-{high:.3f})"
            rows.append(row)
            print(
                f"{case.kernel:32} {case.shape:24} {'equal' if equal else 'DIFFER':8} {text}{verdict}", flush=True
            )
    if options.out and rows:
        with options.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    print("different" if failed else "equal", f"({len(rows)} cases)")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
