"""`seerbench compare`: a kernel or a method of one's own, checked, then timed beside the baselines.

    load -> verify.py (refuse to time a wrong one) -> latency.py's sweeps -> rows, table, figure

A kernel is a function (q, k, v, mask: BlockMask) -> o; one that is named may be any call of four arguments. A
method is a class under `@register`. Both come from a file (`mine.py`, `mine.py:name`) or a module
(`package.module:name`). `--base REF` compares this tree's
block-sparse kernel with that of another commit, in the same process and the same rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from seerbench.baselines.dense import Dense
from seerbench.compare import check as compare_check
from seerbench.compare import trials as compare_trials
from seerbench.compare.base_commit import base_kernel
from seerbench.compare.load import KernelFunction, _method_named, build, kernel_named, load
from seerbench.compare.present import figure, summary
from seerbench.core.problem import AttentionProblem
from seerbench.errors import CompareError
from seerbench.measure import cells as measure_cells
from seerbench.measure import inputs, sweeps
from seerbench.measure.sampler import Timing
from seerbench.methods import block_sparse_kernels
from seerbench.methods.protocol import BlockSparse
from seerbench.methods.registry import create
from seerbench.rows.provenance import finish, provenance
from seerbench.rows.store import atomically, write_rows


def _usual(case: AttentionProblem, base: bool) -> list[str]:
    """What a kernel is compared with unless `--against` says otherwise: on a GPU its fastest dense kernel too."""
    return ["dense", *(["cudnn"] if case.device == "cuda" else []), *([] if base else ["block_sparse"])]


def check(target: Any, case: AttentionProblem, seed: int) -> tuple[list[compare_trials.Finding], int]:
    """Run verify.py's trials, with a progress bar: the findings, and how many trials there were to fail."""
    if isinstance(target, type):
        found = compare_check.check_method(lambda sparsity: build(target, sparsity, case.block_q), case, seed)
    else:
        found = compare_check.check_kernel(target.attend, case, seed)
    outcomes = [finding for _, finding in tqdm(found, desc="checking", unit="trial", leave=False, disable=None)]
    return [finding for finding in outcomes if finding], len(outcomes)


def time_kernels(
    kernels: Mapping[str, Any],
    case: AttentionProblem,
    contexts: Iterable[int],
    sparsities: Iterable[float],
    timing: Timing,
    run_id: str,
) -> measure_cells.Rows:
    """kernel_sweep over contexts and sparsities, a cell at a time, so that progress shows."""
    rows = measure_cells.Rows([], [])
    cells = [(context, sparsity) for context in contexts for sparsity in sparsities]
    for context, sparsity in tqdm(cells, desc="timing", unit="cell", leave=False, disable=None):
        sparse = {name: kernel for name, kernel in kernels.items() if name not in block_sparse_kernels.DENSE}
        dense = {name: kernel for name, kernel in kernels.items() if name in block_sparse_kernels.DENSE}
        part = sweeps.kernel_sweep(replace(case, context=context), [sparsity], timing, run_id, sparse, dense)
        for row in part.cells:
            digest = getattr(kernels.get(row["method"]), "digest", None)
            row["source_digest"] = digest or row["source_digest"]
        rows.cells.extend(part.cells)
        rows.samples.extend(part.samples)
    return rows


def time_methods(
    method: type,
    against: Sequence[str],
    case: AttentionProblem,
    contexts: Iterable[int],
    sparsities: Sequence[float],
    timing: Timing,
    run_id: str,
) -> measure_cells.Rows:
    """methods_sweep on random q, k, v with Llama's RoPE: it says what a method costs, not what it loses."""
    rows = measure_cells.Rows([], [])
    for context in tqdm(contexts, desc="timing", unit="context", leave=False, disable=None):
        attention = inputs.random_attention(replace(case, context=context), timing.seed)
        methods = [("dense", Dense())]
        for sparsity in sparsities:
            methods.append((method.name, build(method, sparsity, case.block_q)))
            methods += [
                (name, create(name, sparsity=sparsity, block=case.block_q)) for name in against if name != "dense"
            ]
        part = sweeps.methods_sweep(inputs.RANDOM_INPUTS, attention, methods, timing, run_id, case.block_q)
        rows.cells.extend(part.cells)
        rows.samples.extend(part.samples)
    return rows


def save(
    name: str, rows: measure_cells.Rows, run: dict[str, Any], frame: pd.DataFrame, results: Path, figures: Path
) -> list[Path]:
    """Write rows (tables `cells` and `samples`) and the figure with its numbers; the files' paths."""
    from seerbench.artefacts import style

    done = finish(run)
    written = []
    for kind, part in (("cells", rows.cells), ("samples", rows.samples)):
        path = results / "compare" / kind / f"{name}.parquet"
        write_rows(path, kind, part, done)
        written.append(path)
    commit = (run["commit"] or "unknown")[:7] + (" (dirty)" if run["dirty"] else "")
    fig = figure(frame, f"measured: {run['device']}; {run['started'][:10]}; commit {commit}")
    contents = {
        ".svg": style.image(fig, "svg"),
        ".png": style.image(fig, "png"),
        ".csv": frame.to_csv(index=False).encode(),
    }
    for suffix, content in contents.items():
        path = figures / f"{name}{suffix}"
        atomically(path, lambda part, content=content: part.write_bytes(content))
        written.append(path)
    return written


def _sane(case: AttentionProblem, contexts: Sequence[int], sparsities: Sequence[float], timing: Timing) -> None:
    """CompareError for options that no comparison can have."""
    if min(contexts) < 1:
        raise CompareError(f"--contexts are counts of tokens, not {min(contexts)}")
    wrong = [sparsity for sparsity in sparsities if not 0 <= sparsity < 1]
    if wrong:
        raise CompareError(f"--sparsity is the share of blocks to skip, from 0 to below 1, not {wrong[0]}")
    if min(case.batch, case.q_heads, case.kv_heads, case.head_dim, case.block_q) < 1:
        raise CompareError("--batch, --heads, --kv-heads, --head-dim and --block are at least 1")
    if case.q_heads % case.kv_heads:
        raise CompareError(
            f"{case.q_heads} query heads do not split over {case.kv_heads} key/value heads; "
            "--heads is a multiple of --kv-heads"
        )
    if case.dtype not in ("float32", "float16", "bfloat16"):
        raise CompareError(f"no dtype {case.dtype!r}; there are float32, float16, bfloat16")
    if timing.rounds < 2:
        raise CompareError("--rounds is at least 2: an interval needs more than one")
    if case.device == "cuda" and not torch.cuda.is_available():
        raise CompareError("torch sees no GPU here; --device cpu")


@dataclass(frozen=True)
class Outcome:
    """What `run` found: either findings (nothing was timed) or a summary and the files written."""

    name: str
    findings: list[compare_trials.Finding]
    trials: int
    frame: pd.DataFrame | None = None
    files: list[Path] = field(default_factory=list)


def run(
    target: str | None,
    *,
    against: Sequence[str],
    contexts: Sequence[int],
    sparsities: Sequence[float],
    case: AttentionProblem,
    timing: Timing,
    results: Path,
    figures: Path,
    name: str | None = None,
    base: str | None = None,
) -> Outcome:
    """Load, check, time, write. The first of `against` is what speed-ups are over; dense is always timed too."""
    _sane(case, contexts, sparsities, timing)
    other = base_kernel(base) if base else None
    loaded = load(target, name) if target else None
    if loaded is None and other is None:
        raise CompareError("name a kernel file, or --base REF to compare this tree's kernel with another commit's")
    candidate = BlockSparse() if loaded is None else loaded
    label = name or ("block_sparse" if loaded is None else candidate.name)
    refusal = None if isinstance(candidate, type) else candidate.refuses(case)
    if refusal:
        raise CompareError(f"{label} refuses this case: {refusal}")
    method = isinstance(candidate, type)
    if method and other:
        raise CompareError("--base compares kernels; a method has its plan too")
    if method:
        label = candidate.name
        against = against or ["dense", "streaming"]
        baselines = {name: _method_named(name) for name in against}
    else:
        baselines = {} if other is None else {other.name: other}
        for one in against or _usual(case, bool(other)):
            kernel = kernel_named(one)
            baselines[kernel.name if isinstance(kernel, KernelFunction) else one] = kernel
    if label in baselines:
        raise CompareError(f"{label} is also the name of a baseline; give another with --name (or @register)")
    findings, trials = check(candidate, case, timing.seed)
    if findings:
        return Outcome(label, findings, trials)
    started = provenance(
        f"compare {label}",
        preset="compare",
        scale="one kernel or method, random inputs",
        seed=timing.seed,
        device=case.device,
    )
    if method:
        rows = time_methods(candidate, against, case, contexts, sparsities, timing, started["run_id"])
    else:
        rows = time_kernels(baselines | {label: candidate}, case, contexts, sparsities, timing, started["run_id"])
    reference = next(iter(baselines))
    frame = summary(pd.DataFrame(rows.cells), pd.DataFrame(rows.samples), reference)
    return Outcome(label, [], trials, frame, save(label, rows, started, frame, results, figures))
