"""Run a comparison: load the candidate and its baselines, check it, time it, write rows and a figure.

cli.py calls `run`. A candidate that fails a trial is not timed.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from seerbench.baselines.dense import Dense
from seerbench.compare.base_commit import base_kernel
from seerbench.compare.check import check_kernel, check_method
from seerbench.compare.decode_check import check_decode_kernel
from seerbench.compare.load import (
    DECODE,
    KernelFunction,
    build,
    decode_kernel_named,
    kernel_named,
    load,
    require_method,
)
from seerbench.compare.present import figure, summary
from seerbench.compare.trials import Finding
from seerbench.compare.user_code import running
from seerbench.core.problem import AttentionProblem
from seerbench.devices import interpreter_refusal
from seerbench.errors import CompareError
from seerbench.measure.cells import Rows, joined
from seerbench.measure.inputs import RANDOM_INPUTS, random_attention
from seerbench.measure.sampler import Timing
from seerbench.measure.sweeps import decode_kernel_sweep, kernel_sweep, methods_sweep
from seerbench.measure.sweeps.decode_kernel import DECODE_KERNELS
from seerbench.methods.block_sparse_kernels import DENSE
from seerbench.methods.mask_kernels import BlockSparseKernel
from seerbench.methods.registry import create
from seerbench.presets.types import DEVICES
from seerbench.rows.provenance import finish, provenance
from seerbench.rows.store import to_table, write_rows
from seerbench.rows.timings import judged
from seerbench.settings import SLUG
from seerbench.writing import require_writable, write_bytes

DTYPES = ("float32", "float16", "bfloat16")
MAX_SEED = 2**32


@dataclass(frozen=True)
class Outcome:
    """The outcome of a comparison: findings if the candidate is wrong, else a summary and the files written.

    Attributes:
        name: the candidate's name in the rows.
        findings: the trials that failed; nothing was timed if there are any.
        trials: the number of trials that compared something.
        frame: the summary (present.summary), or None.
        files: the files written.
    """

    name: str
    findings: list[Finding]
    trials: int
    frame: pd.DataFrame | None = None
    files: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Loaded:
    """The candidate and what it is compared with.

    Attributes:
        name: the candidate's name in the rows.
        candidate: a kernel object, or a method class.
        baselines: name -> kernel object, or name -> None where methods are compared. The order is the order given,
            and the first is the reference of speed-ups.
    """

    name: str
    candidate: Any
    baselines: dict[str, Any]

    @property
    def is_method(self) -> bool:
        """Return whether the candidate is a method rather than a kernel."""
        return isinstance(self.candidate, type)

    @property
    def decodes(self) -> bool:
        """Return whether the candidate is a kernel for decoding."""
        return is_for_decoding(self.candidate)


def run(
    target: str | None,
    *,
    against: Sequence[str],
    contexts: Sequence[int],
    sparsities: Sequence[float],
    problem: AttentionProblem,
    timing: Timing,
    results: Path,
    figures: Path,
    name: str | None = None,
    base: str | None = None,
) -> Outcome:
    """Check a kernel or method and, if it is right, time it beside its baselines.

    Raises CompareError for options that do not fit together and for targets that do not exist.

    Args:
        target: the candidate, as `load` takes it; None for this tree's block-sparse kernel beside that of `base`.
        against: names of baselines. Speed-ups are over the first; by default, those of `default_baselines`. Dense
            attention is always timed too.
        contexts: contexts to time, in tokens.
        sparsities: requested sparsities.
        problem: heads, head_dim, block size, batch, dtype and device; its context is ignored.
        timing: the number of rounds, and the seed of inputs, masks and order.
        results: the folder of runs; rows go to `<results>/compare`.
        figures: the folder for the figure.
        name: the candidate's name in the rows; by default its own.
        base: a commit whose block-sparse kernel is a baseline.
    """
    check_options(problem, contexts, sparsities, timing, name)
    with running([place for place in (target, *against) if place and (".py" in place or ":" in place)]):
        loaded = load_all(target, against, problem, name, base)
        require_writable(*files_of(loaded.name, results, figures).values())
        findings, trials = check(loaded.candidate, problem, timing.seed)
        if findings:
            return Outcome(loaded.name, findings, trials)
        started = provenance(
            f"compare {loaded.name}",
            preset="compare",
            scale="one kernel or method, random inputs",
            seed=timing.seed,
            device=problem.device,
        )
        run_id, names = started["run_id"], list(loaded.baselines)
        if loaded.is_method:
            rows = time_methods(loaded.candidate, names, problem, contexts, sparsities, timing, run_id)
        else:
            kernels = loaded.baselines | {loaded.name: loaded.candidate}
            time = time_decode_kernels if loaded.decodes else time_kernels
            rows = time(kernels, problem, contexts, sparsities, timing, run_id)
        return timed(loaded, trials, rows, started, results, figures)


def timed(
    loaded: Loaded,
    trials: int,
    rows: Rows,
    run: dict[str, Any],
    results: Path,
    figures: Path,
    inputs: Mapping[str, str] | None = None,
    suffix: str = "",
) -> Outcome:
    """Return the outcome of a candidate that was timed, and write it.

    Args:
        loaded: the candidate and its baselines.
        trials: the number of trials that compared something.
        rows: rows of the tables `cells` and `samples`.
        run: their provenance.
        results: the folder of runs.
        figures: the folder for the figure.
        inputs: cell -> its inputs in words, for cells whose context and sparsity do not say all.
        suffix: what the names of the files have after the candidate's name.
    """
    cells, samples = (
        to_table(name, part).to_pandas() for name, part in zip(("cells", "samples"), rows, strict=True)
    )
    frame = summary(*judged(cells, samples), next(iter(loaded.baselines)), inputs)
    files = save(f"{loaded.name}{suffix}", rows, run, frame, results, figures)
    return Outcome(loaded.name, [], trials, frame, files)


def check_options(
    problem: AttentionProblem,
    contexts: Sequence[int],
    sparsities: Sequence[float],
    timing: Timing,
    name: str | None = None,
) -> None:
    """Raise CompareError for options that no comparison can have; the arguments are those of `run`."""
    if problem.device not in DEVICES:
        raise CompareError(f"no device {problem.device!r}; there are {', '.join(DEVICES)}")
    if name is not None and not re.fullmatch(SLUG, name):
        raise CompareError(f"--name has letters, digits, '.', '_' and '-' alone, not {name!r}")
    if not 0 <= timing.seed < MAX_SEED:
        raise CompareError(f"--seed is a number from 0 to below {MAX_SEED}, not {timing.seed}")
    if not timing.cap_s >= 0:
        raise CompareError(f"--cap is a number of seconds, not {timing.cap_s}")
    if min(contexts) < 1:
        raise CompareError(f"--contexts are counts of tokens, not {min(contexts)}")
    wrong = [sparsity for sparsity in sparsities if not 0 <= sparsity < 1]
    if wrong:
        raise CompareError(f"--sparsity is the share of blocks to skip, from 0 to below 1, not {wrong[0]}")
    if min(problem.batch, problem.q_heads, problem.kv_heads, problem.head_dim, problem.block_q) < 1:
        raise CompareError("--batch, --heads, --kv-heads, --head-dim and --block are at least 1")
    if problem.q_heads % problem.kv_heads:
        raise CompareError(
            f"{problem.q_heads} query heads do not split over {problem.kv_heads} key/value heads; "
            "--heads is a multiple of --kv-heads"
        )
    if problem.dtype not in DTYPES:
        raise CompareError(f"no dtype {problem.dtype!r}; there are {', '.join(DTYPES)}")
    if timing.rounds < 2:
        raise CompareError("--rounds is at least 2: an interval needs more than one")
    if os.environ.get("TRITON_INTERPRET") == "1" and (refusal := interpreter_refusal()):
        raise CompareError(f"TRITON_INTERPRET=1: {refusal}")
    if problem.device == "cuda" and not torch.cuda.is_available():
        raise CompareError("torch sees no GPU here; give --device cpu")


def load_all(
    target: str | None, against: Sequence[str], problem: AttentionProblem, name: str | None, base: str | None
) -> Loaded:
    """Load the candidate and its baselines; the arguments are those of `run`."""
    other = base_kernel(base) if base else None
    loaded = load(target, name) if target else None
    if loaded is None and other is None:
        raise CompareError("name a kernel file, or --base REF to compare this tree's kernel with another commit's")
    candidate: Any
    baselines: dict[str, Any]
    if isinstance(loaded, type):
        if other is not None:
            raise CompareError("--base compares kernels, and a method has its plan too; leave it out for a method")
        candidate, label = loaded, str(loaded.name)
        baselines = dict.fromkeys(against or ["dense", "streaming"])
        for baseline in baselines:
            require_method(baseline)
    else:
        candidate = loaded or BlockSparseKernel()
        label = name or ("block_sparse" if loaded is None else loaded.name)
        refusal = candidate.refuses(problem)
        if refusal:
            raise CompareError(f"{label} refuses this case: {refusal}")
        decodes = is_for_decoding(candidate)
        if decodes and other is not None:
            raise CompareError("--base is for kernels for prefill; leave it out for a kernel for decoding")
        baselines = {} if other is None else {other.name: other}
        defaults = list(DECODE_KERNELS) if decodes else default_baselines(problem, other is not None)
        for baseline in against or defaults:
            kernel = (decode_kernel_named if decodes else kernel_named)(baseline)
            baselines[kernel.name if isinstance(kernel, KernelFunction) else baseline] = kernel
    if label in baselines:
        raise CompareError(f"{label} is also the name of a baseline; give another with --name (or @register)")
    return Loaded(label, candidate, baselines)


def is_for_decoding(kernel: Any) -> bool:
    """Return whether a kernel object is one for decoding."""
    return isinstance(kernel, KernelFunction) and kernel.kind == DECODE


def default_baselines(problem: AttentionProblem, with_base: bool) -> list[str]:
    """Return the names of a kernel's default baselines: dense, cuDNN (on a GPU), and ours without a base commit."""
    return ["dense", *["cudnn"] * (problem.device == "cuda"), *["block_sparse"] * (not with_base)]


def check(candidate: Any, problem: AttentionProblem, seed: int) -> tuple[list[Finding], int]:
    """Run the trials of a kernel object or method class, with a progress bar.

    Returns the findings and the number of trials that compared something.
    """
    if isinstance(candidate, type):
        results = check_method(lambda sparsity: build(candidate, sparsity, problem.block_q), problem, seed)
    else:
        trials = check_decode_kernel if is_for_decoding(candidate) else check_kernel
        results = trials(candidate.attend, problem, seed)
    outcomes = [finding for _, finding in tqdm(results, desc="checking", unit="trial", leave=False, disable=None)]
    return [finding for finding in outcomes if finding], len(outcomes)


def time_kernels(
    kernels: Mapping[str, Any],
    problem: AttentionProblem,
    contexts: Iterable[int],
    sparsities: Iterable[float],
    timing: Timing,
    run_id: str,
) -> Rows:
    """Time kernels on random inputs. Each cell is a sweep of its own, to update the progress bar after it.

    Args:
        kernels: kernel objects by name, dense and block-sparse.
        problem: heads, head_dim, block size, dtype and device.
        contexts: contexts in tokens.
        sparsities: requested sparsities.
        timing: the number of rounds and the seed.
        run_id: the execution that the rows belong to.
    """
    dense, sparse = dense_and_sparse(kernels)
    places = [(context, sparsity) for context in contexts for sparsity in sparsities]
    found = []
    for context, sparsity in tqdm(places, desc="timing", unit="cell", leave=False, disable=None):
        rows = kernel_sweep(replace(problem, context=context), [sparsity], timing, run_id, sparse, dense)
        found.append(with_digests(rows, kernels))
    return joined(found)


def dense_and_sparse(kernels: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split kernel objects by name into dense and block-sparse ones."""
    dense = {name: kernel for name, kernel in kernels.items() if name in DENSE}
    return dense, {name: kernel for name, kernel in kernels.items() if name not in DENSE}


def time_decode_kernels(
    kernels: Mapping[str, Any],
    problem: AttentionProblem,
    contexts: Iterable[int],
    sparsities: Iterable[float],
    timing: Timing,
    run_id: str,
) -> Rows:
    """Time kernels for decoding on random caches and lists; the arguments are those of `time_kernels`.

    The context is the number of tokens before the new one. Dense attention is timed whether it is named or not.
    """
    kernels = {"dense": DECODE_KERNELS["dense"](), **kernels}
    places = [(context, sparsity) for context in contexts for sparsity in sparsities]
    found = []
    for context, sparsity in tqdm(places, desc="timing", unit="cell", leave=False, disable=None):
        rows = decode_kernel_sweep(replace(problem, context=context), [sparsity], timing, run_id, kernels)
        found.append(with_digests(rows, kernels))
    return joined(found)


def with_digests(rows: Rows, kernels: Mapping[str, Any]) -> Rows:
    """Return rows in which the digest of a user's kernel is that of its file."""
    for row in rows.cells:
        kernel = kernels.get(row["method"])
        if isinstance(kernel, KernelFunction) and kernel.digest:
            row["source_digest"] = kernel.digest
    return rows


def time_methods(
    method: Any,
    against: Sequence[str],
    problem: AttentionProblem,
    contexts: Iterable[int],
    sparsities: Sequence[float],
    timing: Timing,
    run_id: str,
) -> Rows:
    """Time a method and its baselines on random q and k with Llama's RoPE: their cost, not their loss.

    Args:
        method: the method class.
        against: names of registered methods.
        problem: heads, head_dim, block size, dtype and device.
        contexts: contexts in tokens.
        sparsities: requested sparsities.
        timing: the number of rounds and the seed.
        run_id: the execution that the rows belong to.
    """
    block, found = problem.block_q, []
    for context in tqdm(contexts, desc="timing", unit="context", leave=False, disable=None):
        attention = random_attention(replace(problem, context=context), timing.seed)
        methods = [("dense", Dense())]
        for sparsity in sparsities:
            methods.append((method.name, build(method, sparsity, block)))
            methods += [(name, create(name, sparsity=sparsity, block=block)) for name in against if name != "dense"]
        found.append(methods_sweep(RANDOM_INPUTS, attention, methods, timing, run_id, block))
    return joined(found)


def save(
    name: str, rows: Rows, run: dict[str, Any], frame: pd.DataFrame, results: Path, figures: Path
) -> list[Path]:
    """Write rows, the summary and, where matplotlib is installed, its figure; return the files.

    Args:
        name: the candidate's name, which becomes the files' name.
        rows: rows of the tables `cells` and `samples`.
        run: their provenance.
        frame: the summary.
        results: the folder of runs.
        figures: the folder for the figure (SVG, PNG) and the summary (CSV).
    """
    files, done = files_of(name, results, figures), finish(run)
    write_rows(files["cells"], "cells", rows.cells, done)
    write_rows(files["samples"], "samples", rows.samples, done)
    contents = {".csv": frame.to_csv(index=False).encode()}
    if can_draw():
        from seerbench.artefacts import style  # imported here, since it needs matplotlib

        commit = (run["commit"] or "unknown")[:7] + (" (dirty)" if run["dirty"] else "")
        drawn = figure(frame, f"measured: {run['device']}; {run['started'][:10]}; commit {commit}")
        contents |= {".svg": style.image(drawn, "svg"), ".png": style.image(drawn, "png")}
    for suffix, content in contents.items():
        write_bytes(files[suffix], content)
    return [files["cells"], files["samples"], *(files[suffix] for suffix in contents)]


def can_draw() -> bool:
    """Return whether matplotlib is installed, an optional dependency without which there is no figure."""
    return importlib.util.find_spec("matplotlib") is not None


def files_of(name: str, results: Path, figures: Path) -> dict[str, Path]:
    """Return the files of a comparison: `cells` and `samples`, and those of the figure by suffix."""
    rows = {table: results / "compare" / table / f"{name}.parquet" for table in ("cells", "samples")}
    return rows | {suffix: figures / f"{name}{suffix}" for suffix in (".svg", ".png", ".csv")}
