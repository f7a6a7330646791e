"""Time one cell: check each method, measure its memory, time those that passed, and make the rows.

The sweeps (sweeps/) describe the methods of a cell as entries; `CellTimer` turns entries into rows of the tables
`cells` and `samples`. A method that refuses, runs out of memory or gives a wrong output becomes a row with that
status and its reason, and is not timed. A cell that is timed while other processes use the machine is timed again
when they stop, or else its rows get the status disturbed (load.py). A cell whose rounds differ impossibly from each
other is timed again too: something used the machine and was not seen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from seerbench.core.problem import AttentionProblem
from seerbench.core.top_k import require_budget
from seerbench.errors import Refused
from seerbench.measure.correctness import Check
from seerbench.measure.inputs import InputSource
from seerbench.measure.load import ATTEMPTS, PATIENCE, Load, LoadMeter, Patience, is_limited
from seerbench.measure.memory import peak_mib
from seerbench.measure.sampler import Call, Candidate, Sample, Timing, sample, timer_for
from seerbench.rows.machine import cpu_name
from seerbench.rows.schema import DISTURBED
from seerbench.rows.source_digest import source_digest
from seerbench.rows.timings import QUARTILES, impossible_spread

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


class Rows(NamedTuple):
    """Rows of the tables `cells` and `samples`."""

    cells: list[dict[str, Any]]
    samples: list[dict[str, Any]]


@dataclass(frozen=True)
class Prepared:
    """A method after its first, untimed run: the calls to time and what is known already.

    Attributes:
        stages: the calls to time by stage.
        memory_stage: the stage whose peak memory is recorded as the method's.
        sparsity: realised sparsity of the plan.
        flops: floating-point operations on the kept blocks; None where they are not counted.
        check: the comparison with the reference; None where there is nothing to compare with.
        inside: makes a context to enter around timed calls (see `Candidate`).
        parts: returns the durations of parts of the call just timed (see `Candidate`).
        peak_mib: peak memory, where preparing the method measured it already.
        dense: whether the plan skipped nothing.
        kept_mib: what a method for decoding keeps beside the cache.
    """

    stages: Mapping[str, Call]
    memory_stage: str
    sparsity: float
    flops: float | None = None
    check: Check | None = None
    inside: Callable[[], AbstractContextManager[object]] = nullcontext
    parts: Callable[[], Mapping[str, float]] = dict
    peak_mib: float | None = None
    dense: bool = False
    kept_mib: float | None = None


@dataclass(frozen=True)
class Entry:
    """One method of a cell before it has run.

    Attributes:
        name: the method's name in the cell.
        implementation: the kernel that it runs on.
        mask: how its blocks are chosen: the column `mask`.
        requested: requested sparsity.
        refusal: the reason why the method cannot run, or None.
        prepare: runs the method once and returns what to time.
        problem: the problem with the method's own block size.
        gate: the gate, plan file or configuration that decides the plan, if there is one.
        dynamic: whether the plan depends on the values of q and k.
        selection: the columns that say how the method selects (methods.protocol.selection_columns).
    """

    name: str
    implementation: str
    mask: str
    requested: float | None
    refusal: str | None
    prepare: Callable[[], Prepared]
    problem: AttentionProblem
    gate: str | None = None
    dynamic: bool = False
    selection: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CellTimer:
    """Settings that the cells of one sweep at one context share; `measure` times one of the cells.

    Attributes:
        sweep: kernel, authors_kernel, methods, training_kernel, ttft or decode.
        problem: gives context and device; the block size of an entry may differ.
        inputs: what q, k and v are.
        timing: the number of rounds and the seed.
        run_id: the execution that the rows belong to.
        patience: waits for a quiet machine.
        part: what the names of the cells say after the context, for a sweep that has several of one sparsity.
    """

    sweep: str
    problem: AttentionProblem
    inputs: InputSource
    timing: Timing
    run_id: str
    patience: Patience = PATIENCE
    part: str = ""

    def measure(self, sparsity: float | None, entries: Iterable[Entry]) -> Rows:
        """Prepare and check each entry, then time those that can be timed in the same rounds."""
        cell = f"{self.sweep}-{self.problem.context}{self.part}" + ("" if sparsity is None else f"-{sparsity:.2f}")
        rows: list[dict[str, Any]] = []
        candidates: dict[str, Candidate] = {}
        for entry in entries:
            outcome, candidate = _try(entry, self.problem.device)
            rows.append(self._row(cell, entry) | outcome)
            if candidate:
                candidates[entry.name] = candidate
        samples, load = self._sampled(cell, candidates)
        disturbance = load.disturbance(self.problem.device)
        for row in rows:
            if row["method"] in candidates:
                row |= load.columns() | ({"status": DISTURBED, "reason": disturbance} if disturbance else {})
        return Rows(rows, [{"run_id": self.run_id, "cell": cell, **asdict(timed)} for timed in samples])

    def _sampled(self, cell: str, candidates: Mapping[str, Candidate]) -> tuple[list[Sample], Load]:
        """Time the candidates; if the timings are disturbed or impossible, time them again, ATTEMPTS times at most.

        After a disturbance this waits for a quiet machine. Where SEERBENCH_LOAD_LIMIT is inf, nothing is repeated.
        Returns the samples and the load of the last attempt; rows/timings.py judges the spread of its rounds.
        """
        device = self.problem.device
        timer = timer_for(device)
        for attempt in range(1, ATTEMPTS + 1):
            meter = LoadMeter(device)
            samples = sample(candidates, self.timing, timer, between_rounds=meter.observe)
            load = meter.load() if candidates else Load()
            disturbance = load.disturbance(device)
            if disturbance is not None:
                _say(f"this machine is busy: {disturbance} while {cell} was timed")
                if attempt == ATTEMPTS or not self.patience.wait(device):
                    _say(f"{cell} is marked as disturbed: nothing is concluded from its timings")
                    break
                continue
            impossible = _impossible_spread(samples) if is_limited(device) else None
            if impossible is None:
                break
            again = f"{cell} is timed again" if attempt < ATTEMPTS else f"nothing is concluded from it in {cell}"
            _say(f"{impossible}; {again}")
        return samples, load

    def _row(self, cell: str, entry: Entry) -> dict[str, Any]:
        device = cpu_name() if self.problem.device == "cpu" else torch.cuda.get_device_name()
        return {
            "run_id": self.run_id,
            "sweep": self.sweep,
            "cell": cell,
            "method": entry.name,
            "implementation": entry.implementation,
            **asdict(replace(entry.problem, device=device)),
            **self.inputs.columns(entry.dynamic),
            "mask": entry.mask,
            "gate": entry.gate,
            **entry.selection,
            "sparsity_requested": entry.requested,
            "seed": self.timing.seed,
            "source_digest": source_digest(),
        }


def joined(cells: Iterable[Rows]) -> Rows:
    """Return the rows of several cells as one."""
    rows = Rows([], [])
    for cell in cells:
        rows.cells.extend(cell.cells)
        rows.samples.extend(cell.samples)
    return rows


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _impossible_spread(samples: Iterable[Sample]) -> str | None:
    """Return the first method whose rounds differ impossibly from each other, and how; None where none does."""
    times: dict[str, dict[str, list[float]]] = {}
    for timed in samples:
        times.setdefault(timed.method, {}).setdefault(timed.stage, []).append(timed.ms)
    for method, stages in times.items():
        reason = impossible_spread({stage: np.quantile(ms, QUARTILES) for stage, ms in stages.items()})
        if reason is not None:
            return f"{method}: {reason}"
    return None


def _try(entry: Entry, device: str) -> tuple[dict[str, Any], Candidate | None]:
    """Run the untimed calls of an entry; return the columns of its outcome, and what to time if it can be timed."""
    if entry.refusal:
        return {"status": "refused", "reason": entry.refusal}, None
    try:
        prepared = entry.prepare()
        if entry.requested is not None and not prepared.dense:
            compared = "more" if prepared.sparsity < entry.requested else "fewer"
            why = f"its plan for this input keeps {compared} blocks"
            require_budget(1 - prepared.sparsity, entry.requested, why)
        check = prepared.check
        outcome: dict[str, Any] = {
            "sparsity_realised": prepared.sparsity,
            "error_vs_oracle": check and check.error,
            "error_budget": check and check.budget,
            "kept_mib": prepared.kept_mib,
            "flops": prepared.flops,
        }
        if prepared.dense:
            outcome["mask"] = "dense"
        if check is not None and not check.passed:
            reason = (
                f"differs from the float64 reference by {check.error:.3g}; "
                f"rounding explains at most {check.budget:.3g}"
            )
            return outcome | {"status": "failed", "reason": reason}, None
        outcome["peak_mib"] = prepared.peak_mib
        if prepared.peak_mib is None:
            with prepared.inside():
                for call in prepared.stages.values():  # Compile first: peak memory must not include compilation.
                    call()
                outcome["peak_mib"] = peak_mib(prepared.stages[prepared.memory_stage], device)
    except Refused as refusal:
        return {"status": "refused", "reason": str(refusal)}, None
    except OUT_OF_MEMORY as error:
        reason = str(error).splitlines()[0] if str(error) else "out of memory"
        return {"status": "out_of_memory", "reason": reason}, None
    outcome |= {"status": "measured", "reason": None}
    return outcome, Candidate(prepared.stages, prepared.inside, prepared.parts)
