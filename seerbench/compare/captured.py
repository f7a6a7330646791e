"""Compare kernels on captured workloads: the q, k, v and block masks that `seerbench capture` writes.

cli.py calls `run_captured`. Trials, timing, rows and figure are those of run.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from seerbench.compare.run import (
    Outcome,
    check,
    check_options,
    dense_and_sparse,
    files_of,
    load_all,
    timed,
    with_digests,
)
from seerbench.compare.trials import Finding
from seerbench.compare.user_code import running
from seerbench.errors import CompareError
from seerbench.measure.cells import joined
from seerbench.measure.sampler import Timing
from seerbench.measure.sweeps import captured_sweep
from seerbench.measure.workloads import Workload
from seerbench.rows.provenance import provenance
from seerbench.writing import require_writable

SUFFIX = "-captured"  # of files, so that a comparison on random inputs is not overwritten


def run_captured(
    target: str | None,
    workloads: Sequence[Workload],
    *,
    against: Sequence[str],
    device: str,
    dtype: str | None,
    timing: Timing,
    results: Path,
    figures: Path,
    name: str | None = None,
    base: str | None = None,
) -> Outcome:
    """Check a kernel and, if it is right, time it on captured workloads beside its baselines.

    Raises CompareError for a method, which plans its own masks, for a kernel for decoding, and as `run` does.

    Args:
        target: the candidate, as `run` takes it.
        workloads: what to time it on, at least one.
        against: names of baselines, as for `run`.
        device: "cpu" or "cuda".
        dtype: the dtype to which q, k and v are rounded; None: that of the files.
        timing: the number of rounds, and the seed of the order.
        results: the folder of runs; rows go to `<results>/compare`.
        figures: the folder for the figure.
        name: the candidate's name in the rows; by default its own.
        base: a commit whose block-sparse kernel is a baseline.
    """
    problems = {each: replace(each.problem, device=device, dtype=dtype or each.problem.dtype) for each in workloads}
    shapes = list(dict.fromkeys(replace(problem, context=0) for problem in problems.values()))
    for shape in shapes:
        check_options(shape, [1], [], timing, name)
    with running([place for place in (target, *against) if place and (".py" in place or ":" in place)]):
        loaded = load_all(target, against, shapes[0], name, base)
        if loaded.decodes:
            raise CompareError(
                f"{loaded.name} is a kernel for decoding, and captured workloads are prefills; leave out --masks"
            )
        if loaded.is_method:
            raise CompareError(
                f"{loaded.name} is a method, which plans masks of its own; --masks is for kernels. `seerbench "
                "evaluate` times a method on q, k and v of a model"
            )
        require_writable(*files_of(f"{loaded.name}{SUFFIX}", results, figures).values())
        findings: list[Finding] = []
        trials = 0
        for shape in shapes:
            if not loaded.candidate.refuses(shape):
                found, count = check(loaded.candidate, shape, timing.seed)
                findings, trials = findings + found, trials + count
        if findings:
            return Outcome(loaded.name, findings, trials)
        started = provenance(
            f"compare {loaded.name}",
            preset="compare",
            scale="one kernel, captured inputs and masks",
            seed=timing.seed,
            device=device,
        )
        kernels = loaded.baselines | {loaded.name: loaded.candidate}
        dense, sparse = dense_and_sparse(kernels)
        found_rows, inputs = [], dict[str, str]()
        for workload, problem in tqdm(problems.items(), desc="timing", unit="cell", leave=False, disable=None):
            rows = captured_sweep(workload, device, problem.dtype, timing, started["run_id"], sparse, dense)
            inputs |= {row["cell"]: in_words(workload) for row in rows.cells}
            found_rows.append(rows)
        rows = with_digests(joined(found_rows), kernels)
        return timed(loaded, trials, rows, started, results, figures, inputs, SUFFIX)


def in_words(workload: Workload) -> str:
    """Return which mask a workload has: "seer real:v1 in layer 15 of smollm2"."""
    gate = f" {workload.gate}" if workload.gate else ""
    return f"the mask of {workload.method}{gate} in layer {workload.layer} of {workload.source.model}"
